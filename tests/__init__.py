"""Unit, contract, fault and end-to-end tests; one package, so that helpers are imported by name."""
