"""Benchmarks of one-bit weights."""
