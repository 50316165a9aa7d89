"""Sampling text: engine, client, store and packing against what one would write without them."""
