"""The real command, killed, stopped and deprived."""
