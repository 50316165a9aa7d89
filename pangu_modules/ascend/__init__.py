"""Ascend NPUs: hardware for Lightning, and fused operators."""
