"""One-bit weights by continued training: the binary layer, its schedule and initialization, packing and export."""
