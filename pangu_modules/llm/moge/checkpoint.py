"""The released checkpoint's layout, one tensor per expert and projection, and ours with the experts stacked.

    released: .mlp.experts.{e}.gate_proj|up_proj.weight (I, h), .down_proj.weight (h, I)
    stacked:  .mlp.experts.gate_up_proj (E, 2 I, h; gate first), .mlp.experts.down_proj (E, h, I)

`register_conversion` lets transformers convert while it loads and saves; the functions here do the same to a state
dict. Both are exact: bytes are only moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

EXPERT_TENSOR = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
IGNORED_TENSORS = (r"rotary_emb\.inv_freq", r"(^|\.)module\.")
"""Patterns of tensors that the released loaders skip."""


def register_conversion(model_type: str) -> None:
    """Make transformers stack experts when it loads a model of this type, and split them when it saves one."""
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    experts = "mlp.experts"
    gate_up = [f"{experts}.*.gate_proj.weight", f"{experts}.*.up_proj.weight"]
    register_checkpoint_conversion_mapping(
        model_type,
        [
            WeightConverter(gate_up, f"{experts}.gate_up_proj", operations=[MergeModulelist(0), Concatenate(1)]),
            WeightConverter(f"{experts}.*.down_proj.weight", f"{experts}.down_proj", operations=[MergeModulelist(0)]),
        ],
        overwrite=True,
    )


def stack_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a released state dict with the experts stacked; other tensors are passed on as they are.

    Raises:
        ValueError: an expert's tensor is missing.
    """
    found: dict[str, dict[tuple[int, str], Tensor]] = {}
    stacked = {}
    for name, tensor in state.items():
        match = EXPERT_TENSOR.fullmatch(name)
        if match:
            found.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            stacked[name] = tensor
    for prefix, tensors in found.items():
        experts = range(1 + max(expert for expert, _ in tensors))
        for expert in experts:
            for kind in ("gate_proj", "up_proj", "down_proj"):
                if (expert, kind) not in tensors:
                    raise ValueError(f"the checkpoint has no {prefix}.{expert}.{kind}.weight: is it complete?")
        gate_up = [torch.cat((tensors[expert, "gate_proj"], tensors[expert, "up_proj"])) for expert in experts]
        stacked[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        stacked[f"{prefix}.down_proj"] = torch.stack([tensors[expert, "down_proj"] for expert in experts])
    return stacked


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in the released layout: what `stack_experts` took, tensor by tensor."""
    split = {}
    for name, tensor in state.items():
        prefix, _, kind = name.rpartition(".")
        if not prefix.endswith(".experts") or kind not in ("gate_up_proj", "down_proj"):
            split[name] = tensor
            continue
        for expert, weight in enumerate(tensor):
            if kind == "down_proj":
                split[f"{prefix}.{expert}.down_proj.weight"] = weight.contiguous()
            else:
                gate, up = weight.chunk(2)
                split[f"{prefix}.{expert}.gate_proj.weight"] = gate.contiguous()
                split[f"{prefix}.{expert}.up_proj.weight"] = up.contiguous()
    return split


def check_router_scale(missing: set[str], unexpected: set[str]) -> None:
    """Refuse a checkpoint that has gate factors where the model has none, or lacks those it has.

    Raises:
        ValueError: says which field of the configuration would fit the checkpoint.
    """
    lacking = sorted(name for name in missing if name.endswith("router_scale"))
    ignored = sorted(name for name in unexpected if name.endswith("router_scale"))
    if lacking:
        raise ValueError(
            f"the checkpoint has no {lacking[0]} ({len(lacking)} such tensors are missing), which every released "
            "Pangu Pro MoE has: it is incomplete, or of another model. If it was trained without, set "
            "router_scale=False in its config.json"
        )
    if ignored:
        raise ValueError(
            f"the checkpoint has {ignored[0]} ({len(ignored)} such tensors), but router_scale=False: its gates would "
            "lose their factors; set router_scale=True in its config.json"
        )
