"""Benchmarks of Pangu Light."""
