"""ScaleNet: vision transformers made deeper by sharing weights (arXiv:2510.18431)."""
