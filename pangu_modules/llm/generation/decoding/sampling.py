"""Choosing tokens: one uniform number of a row's own generator, and the inverse of the distribution's CDF, in float64.

So a row's token depends on its logits and its generator alone, not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pangu_modules.llm.generation.settings import GenerationSettings

WITHOUT_FLOAT64 = ("mps", "npu")
LIKELIEST = 1024  # a nucleus is first looked for among these: sorting the whole vocabulary takes ten times as long


@dataclass(frozen=True)
class Choice:
    """The next token of each row.

    Attributes:
        tokens: one for each row.
        logprobs: its log-probabilities (nats) under the model and under the distribution sampled from; None in each row
            where they are not asked for.
    """

    tokens: list[int]
    logprobs: list[tuple[float, float] | None]


def random_numbers(seed: int) -> np.random.Generator:
    """Return the generator of one completion; it is counter-based, so near seeds give unrelated numbers."""
    return np.random.Generator(np.random.Philox(key=seed))


def choose(logits: Tensor, settings: GenerationSettings, generators: Sequence[np.random.Generator]) -> Choice:
    """Choose the next token of each row: the likeliest at temperature 0, else drawn with the row's generator.

    Args:
        logits: (rows, vocabulary).
        settings: temperature, top_k, top_p, logprobs.
        generators: one for each row; each gives one number, none at temperature 0.

    Raises:
        ValueError: a row has logits that are not numbers.
    """
    wide = logits.cpu().double() if logits.device.type in WITHOUT_FLOAT64 else logits
    highest, tokens = wide.max(-1)
    if not torch.isfinite(highest).all():
        raise ValueError("the model's logits are not finite: its weights or its precision do not allow sampling")
    sampled = None
    if settings.temperature > 0:
        wide = wide.double()
        kept = kept_logits(wide / settings.temperature, settings)
        uniforms = torch.tensor([generator.random() for generator in generators], dtype=torch.float64)
        tokens, sampled = draw(kept, uniforms.to(kept.device))
    if not settings.logprobs:
        return Choice(tokens.tolist(), [None] * len(tokens))
    own = _logprobs_of(wide.double(), tokens)
    drawn = torch.zeros_like(own) if sampled is None else sampled  # the likeliest is certain to be taken
    return Choice(tokens.tolist(), list(zip(own.tolist(), drawn.tolist(), strict=True)))


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token at which each row's CDF, in the tokens' order, passes its number, and its log-probability.

    Args:
        logits: (rows, vocabulary) float64; minus infinity where a token must not be drawn.
        uniforms: (rows,) in [0, 1).
    """
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    total = cumulative[:, -1]
    # Below the total even after rounding: otherwise the last token would be drawn, perhaps one that must not.
    threshold = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(1)
    return tokens, _logprobs_of(logits, tokens)


def kept_logits(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """Return logits (rows, vocabulary) with minus infinity outside of the `top_k`, and then of the `top_p`, likeliest.

    The nucleus is the fewest likeliest tokens whose probabilities, after top_k, reach top_p; of equally likely ones the
    lower token comes first.
    """
    if 0 < settings.top_k < logits.shape[-1]:
        logits = _only(logits, _likeliest(logits, settings.top_k))
    if settings.top_p == 1:
        return logits
    total = logits.logsumexp(-1, keepdim=True)
    for count in (LIKELIEST, logits.shape[-1]):
        order = _likeliest(logits, min(count, logits.shape[-1]))
        probabilities = (logits.gather(-1, order) - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        if count >= logits.shape[-1] or bool((before[:, -1] >= settings.top_p).all()):
            break
    # The likeliest has nothing before it, so it always stays.
    return _only(logits, order, before < settings.top_p)


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """Return the numbers of the likeliest tokens, (rows, count), most likely first, and the lower one of equal ones."""
    if count == logits.shape[-1]:
        return logits.argsort(dim=-1, descending=True, stable=True)
    least = logits.topk(count, sorted=False).values.amin(-1, keepdim=True)
    chosen = logits > least
    # topk takes any of those that are equal at the border: take the first ones.
    equal = logits == least
    room = count - chosen.sum(-1, keepdim=True)
    chosen |= equal & (equal.cumsum(-1) <= room)
    numbers = chosen.nonzero()[:, 1].view(len(logits), count)
    ranks = logits.gather(-1, numbers).argsort(dim=-1, descending=True, stable=True)
    return numbers.gather(-1, ranks)


def _only(logits: Tensor, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
    values = logits.gather(-1, tokens)
    if kept is not None:
        values = values.masked_fill(~kept, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, tokens, values)


def _logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
