"""Experts of any mixture in transformers' form: which share of their parameters a token uses."""

from __future__ import annotations

from typing import Any


def active_parameters(model: Any) -> int:
    """Return the parameters of a transformers model that one token uses: of experts, only those it is sent to."""
    config = model.config
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    share = getattr(config, "num_experts_per_tok", None) or 1
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    inside = sum(count for name, count in counts.items() if ".experts." in name)
    return sum(counts.values()) - inside + inside * share // experts
