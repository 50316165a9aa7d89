"""Structured pruning of language models: surgery on them, SlimLLM, Pangu Light and baselines."""
