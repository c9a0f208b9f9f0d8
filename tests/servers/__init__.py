"""Servers on loopback that stand in for the services outside, with their limits, their faults and exact books."""
