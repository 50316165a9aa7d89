"""Attention and rotary embeddings of transformers' models."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.ascend.ops import dispatch
from pangu_modules.ascend.ops.attention import ATTENTION, INFER_ATTENTION
from pangu_modules.ascend.ops.rotary import ROTARY_MUL

NAME = "ascend"
ROTARY = "apply_rotary_pos_emb"


def register_attention() -> None:
    """Make transformers know the attention implementation ``ascend``; its masks are those of ``sdpa``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, ascend_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def ascend_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute attention in the form of transformers' attention interface; off the NPU it is transformers' ``sdpa``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    settings = dispatch.SETTINGS
    elsewhere = settings.simple and query.device.type != settings.device_type
    if elsewhere or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    mask: Any = attention_mask
    causal = kwargs.get("is_causal")
    if mask is None and query.shape[2] > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        # Without a mask there are as many keys as queries, or an empty cache behind them.
        mask, key, value = "top_left", key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    query, key, value = _as_autocast_would(query, key, value)
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dropout = kwargs.get("dropout", 0.0)
    if dropout or dispatch.needs_gradients((query, key, value), {}):
        output = ATTENTION(query, key, value, scale, mask, dropout)
    else:
        output = INFER_ATTENTION(query, key, value, scale, mask)
    return output.transpose(1, 2).contiguous(), None


def _as_autocast_would(*tensors: Tensor) -> Iterator[Tensor]:
    """Yield tensors in autocast's type where it is on: scaled_dot_product_attention is on its list, and ours is not."""
    device = tensors[0].device.type
    wanted = device != "meta" and torch.is_autocast_enabled(device)
    for tensor in tensors:
        yield tensor.to(torch.get_autocast_dtype(device)) if wanted else tensor


def fuse_rotary(attention: type[nn.Module]) -> str | None:
    """Let the rotary function that a class of attention calls be fused on NPUs; return why not, or None.

    The function is a global name of the module the class was written in, so that all models of that file use the new
    one. It is replaced only if it computes a rotation by halves, and calls the old one off the NPU.
    """
    namespace = sys.modules[attention.__module__]
    function = getattr(namespace, ROTARY, None)
    if function is None:
        return f"{attention.__module__} has no {ROTARY}"
    if hasattr(function, "not_fused"):
        return None
    reason = _other_rotation(function)
    if reason is None:
        setattr(namespace, ROTARY, fused_rotary(function))
    return reason


def fused_rotary(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the fused operator on NPUs; ``not_fused`` of the result is the function itself."""

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        settings = dispatch.SETTINGS
        if others or (settings.simple and q.device.type != settings.device_type):
            return function(q, k, cos, sin, *others, **kwargs)
        place = kwargs.get("unsqueeze_dim", 1)
        dtype = torch.promote_types(q.dtype, cos.dtype)  # under autocast the table is wider, and so is the product
        q, k, cos, sin = (tensor.to(dtype) for tensor in (q, k, cos.unsqueeze(place), sin.unsqueeze(place)))
        layout: Any = "BNSD" if place == 1 else "BSND"
        return ROTARY_MUL(q, cos, sin, False, layout), ROTARY_MUL(k, cos, sin, False, layout)

    fused: Any = apply_rotary_pos_emb
    fused.not_fused = function
    return fused


def _other_rotation(function: Callable[..., Any]) -> str | None:
    names = list(inspect.signature(function).parameters)
    if names[:4] != ["q", "k", "cos", "sin"] or not {*names[4:]} <= {"unsqueeze_dim"}:
        return f"its {ROTARY} takes other arguments: {', '.join(names)}"
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 4, 8, generator=generator)
    angles = torch.randn(2, 4, 8, generator=generator)
    with torch.no_grad():
        wanted = function(q, k, angles.cos(), angles.sin())
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        found = (ROTARY_MUL.reference(q, cos, sin), ROTARY_MUL.reference(k, cos, sin))
    same = all(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, found, strict=True))
    return None if same else f"its {ROTARY} rotates in another way"
