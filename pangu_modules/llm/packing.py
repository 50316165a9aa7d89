"""Packed rows: several sequences in one row of a batch, each of which the model sees as if it stood alone.

A packed batch has ``position_ids`` (batch, seq), which count from 0 in each sequence of a row, and in the padding at
its end. transformers builds block-diagonal attention from positions that start anew, unless it is given a mask; so the
model gets the positions and no mask, while losses still read from ``attention_mask`` what is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.common.batches import Batch
from pangu_modules.llm.losses import mean_over_targets

FIRST, OTHER, SECOND = [1, 2, 3, 4, 5], [5, 3, 1, 4, 2], [2, 1, 4, 3, 6, 5]  # token ids that every vocabulary has
# In units of the type's precision. Masked positions add exact zeros, so that what else stands in the row changes
# nothing (seen: 0, and in mixtures whose experts see other batches 1); another shape sums in another order (seen: 4).
SAME_SHAPE, OTHER_SHAPE = 8, 256


def is_packed(batch: Batch) -> bool:
    """Return whether the rows of a batch hold several sequences."""
    return "position_ids" in batch


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return what a transformers model is given of a batch: tokens, with the positions of packed rows or the mask."""
    name = "position_ids" if is_packed(batch) else "attention_mask"
    return {"input_ids": batch["input_ids"], name: batch.get(name)}


def sequence_means(losses: Tensor, valid: Tensor, batch: Batch) -> Tensor:
    """Return each sequence's mean loss, (sequences,); 0 for one without targets.

    Args:
        losses: of each position, (batch, seq), 0 where `valid` is not.
        valid: where there is a target, (batch, seq) bool.
        batch: the batch; its sequences are its rows, or what these hold if they are packed, row by row.
    """
    if not is_packed(batch):
        return mean_over_targets(losses, valid)
    return _sums(losses, batch) / sequence_counts(valid, batch).clamp(min=1)


def sequence_counts(valid: Tensor, batch: Batch) -> Tensor:
    """Return the number of each sequence's targets, (sequences,) int64; arguments as `sequence_means`."""
    return _sums(valid.long(), batch) if is_packed(batch) else valid.sum(1)


def per_sequence(module: Any, losses: Tensor, valid: Tensor, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
    """Return what an objective returns: `sequence_means`, and `sequence_counts` too where the module counts by tokens.

    Args:
        module: what is trained; ``config.loss_per`` says what counts the same, a sequence or a token.
        losses: of each position, (batch, seq), 0 where `valid` is not.
        valid: where there is a target, (batch, seq) bool.
        batch: the batch.
    """
    means = sequence_means(losses, valid, batch)
    by_token = getattr(module.config, "loss_per", "sequence") == "token"
    return (means, sequence_counts(valid, batch)) if by_token else means


def num_sequences(batch: Batch) -> int:
    """Return the number of sequences: of rows, or of what packed rows hold."""
    return int(_starts(batch).sum()) if is_packed(batch) else len(batch["input_ids"])


def _starts(batch: Batch) -> Tensor:
    """Return where a sequence of packed rows begins, (batch, seq) bool; the padding is none."""
    starts: Tensor = batch["position_ids"] == 0
    mask = batch.get("attention_mask")
    return starts if mask is None else starts & (mask != 0)


def _sums(values: Tensor, batch: Batch) -> Tensor:
    """Return sums of values (batch, seq) over each sequence; those of padding, 0, go to the sequence before it."""
    starts = _starts(batch)
    index = starts.flatten().cumsum(0) - 1
    return values.new_zeros(int(starts.sum())).index_add(0, index, values.flatten())


def check_kept_apart(model: Any, logits_of: Callable[[Batch], Tensor]) -> None:
    """Refuse a model in which sequences of one row see each other, by trying it on two short ones.

    Models with a recurrent state do, and those whose code reads no positions. A leak shows in the gradient, which is
    exactly zero without one in any type, and a choice that tokens make together (as routers may) in the logits.

    Args:
        model: a transformers model, in evaluation mode meanwhile.
        logits_of: returns the logits (batch, seq, vocabulary) of a batch.

    Raises:
        ValueError: the second sequence's logits depend on the first, or are not those that it has alone.
    """
    device = next(model.parameters()).device
    with _evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            packed, slope = _second_and_slope(model, logits_of, _pair(FIRST, device))
        except TypeError as error:
            raise ValueError(_refusal(model, f"takes no position_ids ({error})")) from error
        with torch.no_grad():
            changed = logits_of(_pair(OTHER, device))[0, len(FIRST) :]
            alone = logits_of({"input_ids": torch.tensor([SECOND], device=device)})[0]
    unit = torch.finfo(alone.dtype).eps * float(alone.abs().max())
    leaked, moved = (float((packed - other).abs().max()) for other in (changed, alone))
    if not (slope == 0 and leaked <= SAME_SHAPE * unit):
        raise ValueError(_refusal(model, "lets a sequence see the one before it in its row"))
    if not moved <= OTHER_SHAPE * unit:
        raise ValueError(_refusal(model, f"computes other logits for a sequence in a row (by {moved:.2g})"))


def _second_and_slope(model: Any, logits_of: Callable[[Batch], Tensor], pair: Batch) -> tuple[Tensor, float]:
    """Return the second sequence's logits, and their largest derivative by the embeddings of the first."""
    inputs: list[Tensor] = []

    def take(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        inputs.append(embedded.detach().requires_grad_())
        return inputs[-1].clone()  # some models write into it

    handle = model.get_input_embeddings().register_forward_hook(take)
    try:
        with torch.enable_grad():
            logits = logits_of(pair)[0, len(FIRST) :]
            (slopes,) = torch.autograd.grad(logits.square().sum(), inputs[0])
    finally:
        handle.remove()
    return logits.detach(), float(slopes[0, : len(FIRST)].abs().max())


def _pair(first: list[int], device: torch.device) -> dict[str, Tensor]:
    positions = [*range(len(first)), *range(len(SECOND))]
    rows = {"input_ids": [*first, *SECOND], "position_ids": positions, "attention_mask": [1] * len(positions)}
    return {name: torch.tensor([row], device=device) for name, row in rows.items()}


def _refusal(model: nn.Module, reason: str) -> str:
    return f"packing: {type(model).__name__} {reason}: set packing=none; length_buckets=true also saves padding"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes: Mapping[nn.Module, bool] = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
