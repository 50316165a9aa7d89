"""Small models with weights of +s and -s, as binarization leaves them."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llm import tiny_module
from torch import nn

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.onebit.plan import BinarizePlan


@torch.no_grad()
def make_binary(linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
    """Round the weight to sign times the row's mean magnitude, which is rounded to `dtype`."""
    scale = linear.weight.abs().mean(1, keepdim=True).to(dtype).float()
    linear.weight.copy_(torch.where(linear.weight >= 0, scale, -scale))


def block_linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if name.endswith("_proj")}


def binary_module(dtype: torch.dtype = torch.float32, final: bool = True, **fields: Any) -> CausalLM:
    """A tiny Llama whose blocks are binary, with the plan that says so."""
    plan = BinarizePlan.model_validate({"final": final, "onebit": {"init": "none"}})
    module = tiny_module(structure=(plan,), **fields).eval()
    for linear in block_linears(module.model).values():
        if isinstance(linear, nn.Linear):
            make_binary(linear, dtype)
    return module
