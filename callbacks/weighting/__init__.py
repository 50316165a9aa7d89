"""Callbacks that weigh the sequences of a batch: DWM and its baselines."""
