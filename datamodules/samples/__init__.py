"""Embedded samples: data and models inside Python packages, without a network."""
