"""A job's state on disk: checkpoint, ledger, rejects, lock."""
