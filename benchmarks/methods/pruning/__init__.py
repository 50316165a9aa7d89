"""Benchmarks of pruning: what SlimLLM and Pangu Light share, and their races."""
