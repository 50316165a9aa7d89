"""Benchmarks: what the papers claim, measured small, and races against peers; results are in ``results/``."""
