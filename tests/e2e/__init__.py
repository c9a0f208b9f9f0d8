"""The real command on real input."""
