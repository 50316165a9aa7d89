"""Samples and scores on disk, and the stages that make them."""
