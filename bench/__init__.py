"""Benchmarks: figures against the limits of the machine, side by side in one run, as ratios."""
