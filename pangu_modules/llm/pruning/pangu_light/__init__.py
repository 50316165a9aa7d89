"""Pangu Light: width, depth and heads pruned, weights re-initialised (arXiv:2505.20155)."""
