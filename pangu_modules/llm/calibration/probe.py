"""Activations of a decoder on calibration batches: the forward passes, the padding mask, the norms of the stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pangu_modules.llm.calibration.statistics import exact_device
from pangu_modules.llm.models.decoder import backbone, decoder_layers, hidden_size
from pangu_modules.training.objectives import Batch


class Probe:
    """Context manager that keeps forward hooks and the padding mask of the batch that is passing through.

    A subclass registers its hooks in `attach` and reads `mask` in them. Hooks return None: what a forward hook returns
    replaces the module's output.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.mask: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks of this probe and return their handles."""
        raise TypeError(f"{type(self).__name__} does not define attach()")

    def __enter__(self) -> Self:
        self._handles = [backbone(self.model).register_forward_pre_hook(self._read_mask, with_kwargs=True)]
        self._handles += self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _read_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask must have shape (batch, seq) to tell padding, got {tuple(mask.shape)}")
        # A mask without padding is dropped: the hooks then need no weighting.
        self.mask = None if mask is None or bool((mask != 0).all()) else mask != 0


@torch.no_grad()
def run(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Run the decoder, without its head, over all batches in evaluation mode; return the number of real tokens.

    Args:
        model: a transformers causal language model.
        batches: each with ``input_ids`` (batch, seq) and, where sequences are padded, ``attention_mask`` (batch, seq).

    Raises:
        ValueError: there is no batch.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    tokens = 0
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            ids = batch["input_ids"].to(device)
            backbone(model)(input_ids=ids, attention_mask=None if mask is None else mask.to(device), use_cache=False)
            tokens += ids.numel() if mask is None else int((mask != 0).sum())
    finally:
        model.train(training)
    if tokens == 0:
        raise ValueError("calibration has no tokens: give at least one batch with input_ids (batch, seq)")
    return tokens


def hidden_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the RMSNorms over the hidden channels by name: two per layer (four in a sandwich) and the final one.

    Norms inside the attention (over head_dim) are not among them.

    Raises:
        ValueError: one of them is not an RMSNorm (a LayerNorm subtracts the mean, which no gain makes good).
    """
    norms: dict[str, nn.Module] = {}
    for index, layer in enumerate(decoder_layers(model)):
        for name, child in layer.named_children():
            weight = getattr(child, "weight", None)
            if isinstance(weight, Tensor) and weight.shape == (hidden_size(model),):
                norms[f"layers.{index}.{name}"] = child
    norms["norm"] = backbone(model).norm
    for name, norm in norms.items():
        if "RMSNorm" not in type(norm).__name__ or getattr(norm, "bias", None) is not None:
            raise ValueError(f"{name} is {type(norm).__name__}: Pangu Light needs a model whose norms are RMSNorms")
    return norms


def sum_over_tokens(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each sequence's sum of values over its real tokens (batch, size) and the tokens' number (batch, 1).

    Both are float64, on the CPU for devices without it.

    Args:
        values: (batch, seq, size).
        mask: (batch, seq), True on real tokens; None if all are.
    """
    if mask is None:
        mask = values.new_ones(values.shape[:2], dtype=torch.bool)
    else:
        values = values.masked_fill(~mask[..., None], 0)
    tokens = mask.sum(1, keepdim=True).to(exact_device(mask.device)).double()
    if exact_device(values.device) != values.device:
        return values.sum(1).to(tokens), tokens
    return values.sum(1, dtype=torch.float64), tokens
