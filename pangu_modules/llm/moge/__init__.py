"""Mixture of Grouped Experts (Pangu Pro MoE): router, experts, model, and the simulator of its throughput."""
