"""Calibration: windows of text, statistics of activations, the walk through a model layer by layer."""
