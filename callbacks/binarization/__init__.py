"""Callbacks that make weights binary over training."""
