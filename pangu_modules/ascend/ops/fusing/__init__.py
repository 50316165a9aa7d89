"""`fuse`: let a model use the operators, without a change to its code, weights or checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pangu_modules.ascend.ops.fusing.attention import NAME, fuse_rotary, register_attention
from pangu_modules.ascend.ops.fusing.modules import fused_forward, is_replaced, replace_forward, restore_forward
from pangu_modules.ascend.ops.fusing.seams import fill_seams

__all__ = ["Fusion", "fuse", "unfuse"]


@dataclass
class Fusion:
    """What `fuse` did.

    Args:
        fused: number of places by what they are, such as ``LlamaRMSNorm``.
        left: why a kind of place was left as it is.
    """

    fused: Counter[str] = field(default_factory=Counter)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in self.fused.items()) or "nothing"
        left = (f"left: {name}, {why}" for name, why in self.left.items())
        return "\n".join((f"fused where the device allows: {done}", *left))


def fuse(model: nn.Module) -> Fusion:
    """Let a model use fused operators where they can run; elsewhere it computes what it did before.

    RMS norms, gated MLPs and rotary functions are replaced where they compute what the operators do, which is tried on
    small weights; transformers' attention becomes the implementation ``ascend``; the experts, the router and the
    cross-entropy of this library's models take them from their seams. Neither weights nor checkpoints change, and a
    second call changes nothing.

    Args:
        model: any module; a transformers model or a LightningModule around one.
    """
    fill_seams()
    fusion = Fusion()
    _fuse_attention(model, fusion)
    for module in model.modules():
        kind = type(module).__name__
        if is_replaced(module):
            continue
        forward = fused_forward(module)
        if isinstance(forward, str):
            fusion.left[kind] = forward
        elif forward is not None:
            replace_forward(module, forward)
            fusion.fused[kind] += 1
    return fusion


def unfuse(model: nn.Module) -> None:
    """Undo `fuse` for this model; rotary functions and seams, which do nothing off the NPU, stay."""
    for module in model.modules():
        restore_forward(module)
    for pretrained in _pretrained(model):
        if pretrained.config._attn_implementation == NAME:
            pretrained.set_attn_implementation("sdpa")


def _fuse_attention(model: nn.Module, fusion: Fusion) -> None:
    for pretrained in _pretrained(model):
        kind, chosen = f"attention of {type(pretrained).__name__}", pretrained.config._attn_implementation
        if chosen == "sdpa":
            register_attention()
            pretrained.set_attn_implementation(NAME)
            fusion.fused[kind] += 1
        elif chosen != NAME:
            fusion.left[kind] = f"its implementation is {chosen!r}, and only 'sdpa' is replaced"
    for module in model.modules():
        attention = type(module)
        if attention.__name__.endswith("Attention") and hasattr(module, "num_key_value_groups"):
            kind, reason = f"rotary embedding of {attention.__name__}", fuse_rotary(attention)
            if reason is None:
                fusion.fused[kind] += 1
            else:
                fusion.left[kind] = reason


def _pretrained(model: nn.Module) -> Iterator[Any]:
    """Yield the transformers models in a model, outermost first; one inside another shares its configuration."""
    for module in model.modules():
        if hasattr(module, "set_attn_implementation") and hasattr(module, "config"):
            yield module
