"""Distillation: losses against a teacher's logits, and the teacher as an objective."""
