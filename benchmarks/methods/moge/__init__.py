"""Benchmarks of MoGE."""
