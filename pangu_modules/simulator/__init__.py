"""Upper estimates of a model's throughput on a card, from sizes alone: roofline, layouts, design search."""
