"""The documents are true: generated parts are current, examples run, names exist."""
