"""Benchmarks of SlimLLM."""
