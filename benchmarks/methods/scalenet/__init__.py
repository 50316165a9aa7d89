"""Benchmarks of ScaleNet."""
