"""Benchmarks of post-training: curriculum fine-tuning and offline on-policy distillation."""
