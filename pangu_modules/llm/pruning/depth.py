"""Depth pruning: which layers to drop, by block influence or perplexity, and LaCo-like merging as a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pangu_modules.llm.models.decoder import decoder_layers
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.training.objectives import Batch


def select_dropped_layers(
    scores: Tensor, num_drop: int, *, protect: Sequence[int] = (0, -1), allow_adjacent: bool = True
) -> list[int]:
    """Return the `num_drop` layers of lowest score in ascending order; a tie goes to the lower index.

    Args:
        scores: (layers,), larger is more important.
        num_drop: number of layers to drop.
        protect: layers never dropped; negative numbers count from the end.
        allow_adjacent: whether two neighbouring layers may both go.

    Raises:
        ValueError: a protected layer does not exist, or too few layers may be dropped.
    """
    count = len(scores)
    if any(not -count <= layer < count for layer in protect):
        raise ValueError(f"protect_layers={list(protect)}: the model has layers 0 to {count - 1}")
    protected = {layer % count for layer in protect}
    dropped: set[int] = set()
    for layer in torch.sort(scores, stable=True).indices.tolist():
        adjacent = {layer - 1, layer + 1} & dropped
        if len(dropped) < num_drop and layer not in protected and (allow_adjacent or not adjacent):
            dropped.add(layer)
    if len(dropped) < num_drop:
        raise ValueError(
            f"cannot drop {num_drop} of {count} layers: protect_layers={list(protect)} and "
            f"allow_adjacent={allow_adjacent} leave only {len(dropped)} to drop; keep more layers or protect fewer"
        )
    return sorted(dropped)


def perplexity_scores(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Return how much the perplexity rises when each layer alone is skipped, (layers,); one run per layer."""
    dense = perplexity(model, batches)
    scores = []
    for layer in decoder_layers(model):
        with _skipped(layer):
            scores.append(perplexity(model, batches) - dense)
    return torch.tensor(scores, dtype=torch.float64)


@torch.no_grad()
def merge_differences(receiver: nn.Module, dropped: Sequence[nn.Module]) -> None:
    """Add the parameter differences of dropped layers to the layer that stays: LaCo's merge (arXiv:2402.11187).

    ``theta <- theta + sum_k (theta_k - theta)`` with the receiver's theta from before the merge.

    Args:
        receiver: a decoder layer, changed in place.
        dropped: decoder layers of the same shape.
    """
    others = [dict(layer.named_parameters()) for layer in dropped]
    for name, parameter in receiver.named_parameters():
        parameter.add_(torch.stack([other[name] - parameter for other in others]).sum(0))


@contextmanager
def _skipped(layer: nn.Module) -> Iterator[None]:
    """Let the hidden states pass the layer unchanged."""
    handle = layer.register_forward_hook(lambda module, args, output: args[0])
    try:
        yield
    finally:
        handle.remove()
