"""Benchmarks of DWM."""
