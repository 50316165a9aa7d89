"""Fused operators on Ascend NPUs: what dispatch costs elsewhere, and what a roofline predicts of the NPU itself."""
