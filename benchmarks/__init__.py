"""Measurements: each module is a command (`python -m benchmarks.NAME`) that prints what it measured.

Rates are given as ratios to a yardstick that runs in the same call, in turn with what is measured.
"""
