"""Callbacks that prune before training starts."""
