"""SlimLLM: heads and channels pruned in closed form (arXiv:2505.22689)."""
