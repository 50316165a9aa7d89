"""DWM: weights for the sequences of a batch, learned by bi-level optimization (arXiv:2507.16178)."""
