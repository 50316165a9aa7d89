"""Teacher-forced log-probabilities of given texts, without the logits of all their tokens at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pangu_modules.llm.generation.decoding.rows import arguments_of
from pangu_modules.llm.generation.records import SequenceScores
from pangu_modules.llm.generation.settings import GenerationSettings
from pangu_modules.llm.losses import wide

OWN_WAYS = ("cpmant", "prophetnet")  # families whose hidden states are not one for each token of a text


@torch.no_grad()
def score_sequences(
    model: Any, sequences: Sequence[Sequence[int]], settings: GenerationSettings, top_k: int, num_tokens: int
) -> list[SequenceScores]:
    """Return the scores of each sequence, of at least one token, in their order.

    Args:
        model: a transformers causal LM in evaluation mode.
        sequences: token ids.
        settings: ``batch_size`` sequences are read at a time, of ``chunk_tokens`` tokens there are logits at a time.
        top_k: number of likeliest tokens at each place.
        num_tokens: rows of the head that are tokens.
    """
    # Sequences of about the same length share a batch, which saves padding.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]), reverse=True)
    scores: dict[int, SequenceScores] = {}
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        read = [sequences[index] for index in chosen]
        written = _score_batch(model, read, settings.chunk_tokens, top_k, num_tokens)
        scores |= dict(zip(chosen, written, strict=True))
    return [scores[index] for index in range(len(sequences))]


def _score_batch(
    model: Any, sequences: Sequence[Sequence[int]], chunk_tokens: int, top_k: int, num_tokens: int
) -> list[SequenceScores]:
    device = next(model.parameters()).device
    longest = max(len(sequence) for sequence in sequences)
    input_ids = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    mask = torch.arange(longest, device=device) < lengths[:, None]
    places = mask[:, 1:].nonzero()  # of the tokens that are followed by another: row and column
    targets = input_ids[:, 1:][mask[:, 1:]]
    parts = [
        _score_tokens(logits[:, :num_tokens], targets[start : start + len(logits)], top_k)
        for start, logits in logits_in_chunks(model, input_ids, mask.long(), places, chunk_tokens)
    ]
    empty = (np.zeros(0, np.float32), np.zeros((0, top_k), np.int32), np.zeros((0, top_k), np.float32))
    columns = [np.concatenate(column) for column in zip(empty, *parts, strict=True)]
    ends = np.cumsum([len(sequence) - 1 for sequence in sequences])[:-1]
    return [SequenceScores(*row) for row in zip(*(np.split(column, ends) for column in columns), strict=True)]


def logits_in_chunks(
    model: Any, input_ids: Tensor, mask: Tensor, places: Tensor, chunk_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of the first of `places`, and logits of at most `chunk_tokens` of them, (places, vocabulary).

    Args:
        model: a transformers causal LM.
        input_ids: (batch, seq), padded on the right.
        mask: (batch, seq), 0 at padding.
        places: (places, 2), row and column.
        chunk_tokens: rows of logits that there are at a time.
    """
    body = body_of(model)
    if body is None:
        yield from _whole_logits(model, input_ids, mask)
        return
    output = body(input_ids=input_ids, use_cache=False, **_mask_for(body, mask))
    hidden = output.last_hidden_state[places[:, 0], places[:, 1]]
    for start in range(0, len(hidden), chunk_tokens):
        chunk = hidden[start : start + chunk_tokens]
        with _answering(body, output, chunk[None]):
            yield start, model(input_ids=input_ids[:1, :1].expand(1, len(chunk)), use_cache=False).logits[0]


def body_of(model: Any) -> Any:
    """Return the part of a model whose hidden states its own forward pass turns into logits, or None if there is none.

    That pass has what a family does around its head: scales, caps, projections.
    """
    if model.config.model_type in OWN_WAYS:
        return None
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    for body in (model.get_decoder(), model.base_model):
        if body is None or body is model:
            continue
        output = body(input_ids=token, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            continue
        with _answering(body, output, hidden) as asked:
            model(input_ids=token, use_cache=False)
        if asked:
            return body
    return None


def _whole_logits(model: Any, input_ids: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the same as `logits_in_chunks` of one sequence after the other."""
    warnings.warn(
        f"a {model.config.model_type} gives no hidden states apart from its head: the logits of a whole sequence are "
        "in memory at a time, not those of chunk_tokens tokens",
        stacklevel=2,
    )
    start = 0
    for tokens, length in zip(input_ids, mask.sum(1).tolist(), strict=True):
        if length > 1:
            yield start, model(input_ids=tokens[None, :length], use_cache=False).logits[0, :-1]
        start += length - 1


@contextmanager
def _answering(body: Any, output: Any, hidden: Tensor) -> Iterator[list[bool]]:
    """Let the part of a model below its head answer with these hidden states, (1, tokens, width), within the block.

    Yields:
        a list that is empty until it was asked.
    """
    answer = copy.copy(output)
    answer.last_hidden_state = hidden
    asked: list[bool] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        asked.append(True)
        return answer

    own = vars(body).get("forward")
    body.forward = forward
    try:
        yield asked
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def _mask_for(body: Any, mask: Tensor) -> dict[str, Tensor]:
    return {"attention_mask": mask} if "attention_mask" in arguments_of(body) else {}


def _score_tokens(logits: Tensor, targets: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the log-probability of each target, (tokens,), and ids and log-probabilities of the likeliest."""
    logits = wide(logits)
    total = logits.logsumexp(-1, keepdim=True)
    own = (logits.gather(-1, targets[:, None]) - total).squeeze(1)
    values, tokens = logits.topk(top_k, dim=-1)
    return own.float().cpu().numpy(), tokens.int().cpu().numpy(), (values - total).float().cpu().numpy()
