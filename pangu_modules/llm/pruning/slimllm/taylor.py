"""First-order Taylor importance of heads and FFN channels (LLM-Pruner, arXiv:2305.11627): needs a backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.common.batches import IGNORE_INDEX
from pangu_modules.llm.models import decoder
from pangu_modules.training.objectives import Batch


@dataclass(frozen=True)
class LayerTaylor:
    """Signed sums of weight times gradient: `heads` (num_heads,), `channels` (intermediate,)."""

    heads: Tensor
    channels: Tensor


def taylor_scores(model: nn.Module, batches: Iterable[Batch]) -> list[LayerTaylor]:
    """Return each structure's ``sum w * dL/dw``, its first-order effect on the loss, for every layer.

    L is the next-token loss summed over the batches. A head owns its query rows and output columns and an equal share
    of its group's key and value rows. Gradients of all projections are held at once: twice the model's memory.

    Args:
        model: a supported causal language model.
        batches: with ``input_ids`` (batch, seq) and, where padded, ``attention_mask`` (batch, seq).
    """
    layers = decoder.decoder_layers(model)
    with _projections_require_grad(model), torch.enable_grad():
        for batch in batches:
            _loss(model, batch).backward()
        return [_layer_scores(layer) for layer in layers]


def _loss(model: Any, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    ids = batch["input_ids"].to(device)
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:].masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORE_INDEX)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


@torch.no_grad()
def _layer_scores(layer: nn.Module) -> LayerTaylor:
    shape = decoder.layer_shape(layer)
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    own = _effect(attention.q_proj, 1) + _effect(attention.o_proj, 0)
    shared = _effect(attention.k_proj, 1) + _effect(attention.v_proj, 1)
    heads = own.unflatten(0, (shape.num_heads, -1)).sum(1)
    groups = shared.unflatten(0, (shape.num_kv_heads, -1)).sum(1) / shape.queries_per_group
    return LayerTaylor(
        heads=heads + groups.repeat_interleave(shape.queries_per_group),
        channels=_effect(mlp.gate_proj, 1) + _effect(mlp.up_proj, 1) + _effect(mlp.down_proj, 0),
    )


def _effect(linear: nn.Linear, dim: int) -> Tensor:
    assert linear.weight.grad is not None
    return (linear.weight * linear.weight.grad).sum(dim, dtype=torch.float64)


@contextmanager
def _projections_require_grad(model: nn.Module) -> Iterator[None]:
    """Let exactly the projections of the layers collect gradients; put everything back afterwards."""
    weights = {
        id(linear.weight)
        for layer in decoder.decoder_layers(model)
        for linear in layer.modules()
        if isinstance(linear, nn.Linear)
    }
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    training = model.training
    model.eval()
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in weights)
            parameter.grad = None
        yield
    finally:
        model.train(training)
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
