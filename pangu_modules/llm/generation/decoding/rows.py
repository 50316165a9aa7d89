"""Texts under way as rows of a batch: what the model says next of each, with its cache or by reading all again."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pangu_modules.llm.generation.decoding.cache import GrowingCache, joined_masks

POSITIONS_FROM_MASK = ("bloom", "mpt")  # families that take no positions, and place texts right behind padding
OWN_WAYS = ("dory", "minimax", "xlm")  # families that do more with their cache than adding to it
ONLY_DECODERS = ("gpt_neox", "gpt_neox_japanese")  # no encoders, though their configurations have `is_decoder`


class Rows(Protocol):
    """A batch of texts, none at first; rows leave and enter between steps.

    Attributes:
        logits: of the next token of each text, (rows, vocabulary).
    """

    logits: Tensor

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the first texts of a batch."""

    def add(self, other: Any, indices: Sequence[int]) -> None:
        """Add rows of another batch of this class, below those that are here; one may be taken many times."""

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows, in this order; see `order_kept`."""

    def step(self, tokens: Sequence[int]) -> None:
        """Add a token to each text, and read it."""


class CachedRows:
    """Rows whose keys and values are kept: prompts are read at once, padded on the left, then a token of each a step.

    Args:
        model: the transformers model.
        most_rows: rows that there will be at most.
    """

    def __init__(self, model: Any, most_rows: int) -> None:
        self._model, self._most_rows = model, most_rows
        self._device = next(model.parameters()).device
        self._takes = arguments_of(model)
        self._cache_argument = str(cache_argument(self._takes))
        self._cache = GrowingCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        self._lengths = torch.zeros(0, dtype=torch.long, device=self._device)  # of each text
        self.logits = torch.zeros(0, 0, device=self._device)

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Rows`."""
        input_ids, mask = pad_left(prompts)
        self._mask = mask.to(self._device)
        self._lengths = self._mask.sum(1)
        self.logits = self._read(input_ids.to(self._device), (self._mask.cumsum(1) - 1).clamp(min=0))

    def add(self, other: CachedRows, indices: Sequence[int]) -> None:
        """See `Rows`."""
        chosen = list(indices)
        self._cache.add_rows(other._cache, chosen, self._most_rows)
        self._mask = joined_masks(self._mask, other._mask[chosen])
        self._lengths = torch.cat([self._lengths, other._lengths[chosen]])
        self.logits = _below(self.logits, other.logits[chosen])

    def keep(self, indices: Sequence[int]) -> None:
        """See `Rows`."""
        chosen = list(indices)
        columns = self._mask.shape[1]
        self._lengths = self._lengths[chosen]
        hidden = columns - int(self._lengths.max()) if chosen else columns
        self._mask = self._mask[chosen, hidden:]
        moves = [(source, target) for target, source in enumerate(chosen) if source != target]
        self._cache.keep_rows(moves, len(chosen), hidden)
        self.logits = self.logits[chosen]

    def step(self, tokens: Sequence[int]) -> None:
        """See `Rows`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        input_ids = torch.tensor(tokens, device=self._device)[:, None]
        self.logits = self._read(input_ids, self._lengths[:, None])
        self._lengths = self._lengths + 1

    def _read(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._mask,
            use_cache=True,
            **{self._cache_argument: self._cache},
            **{name: value for name, value in optional.items() if name in self._takes},
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class RecomputedRows:
    """Rows of a model whose state cannot be moved between batches: each text is read again at each step, alone.

    Args:
        model: the transformers model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._texts: list[list[int]] = []
        self.logits = torch.zeros(0, 0, device=self._device)

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Rows`."""
        self._texts = [list(prompt) for prompt in prompts]
        self.logits = self._read()

    def add(self, other: RecomputedRows, indices: Sequence[int]) -> None:
        """See `Rows`."""
        self._texts += [list(other._texts[index]) for index in indices]
        self.logits = _below(self.logits, other.logits[list(indices)])

    def keep(self, indices: Sequence[int]) -> None:
        """See `Rows`."""
        self._texts = [self._texts[index] for index in indices]
        self.logits = self.logits[list(indices)]

    def step(self, tokens: Sequence[int]) -> None:
        """See `Rows`."""
        for text, token in zip(self._texts, tokens, strict=True):
            text.append(token)
        self.logits = self._read()

    def _read(self) -> Tensor:
        texts = [torch.tensor([text], device=self._device) for text in self._texts]
        return torch.cat([self._model(input_ids=text, use_cache=False).logits[:, -1] for text in texts])


def _below(logits: Tensor, others: Tensor) -> Tensor:
    return torch.cat([logits, others]) if len(logits) else others


def holds_rows(model: Any) -> bool:
    """Return whether `CachedRows` can hold this model's texts: its state is the keys and values of its tokens alone."""
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    config, takes = model.config.get_text_config(decoder=True), arguments_of(model)
    if cache_argument(takes) is None or "attention_mask" not in takes or config.model_type in OWN_WAYS:
        return False
    if hasattr(config, "is_decoder") and config.model_type not in ONLY_DECODERS:
        return False  # encoders that may decode: some count positions in a way of their own
    if "position_ids" not in takes and config.model_type not in POSITIONS_FROM_MASK:
        return False
    # A cache without the configuration holds sliding windows whole, and the attention mask cuts them.
    known = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return all(type(layer) in known for layer in DynamicCache(config=config).layers)


def arguments_of(model: Any) -> frozenset[str]:
    """Return the names of what the model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def cache_argument(names: Collection[str]) -> str | None:
    """Return transformers' name of the cache among a forward pass's arguments, or None: it changed within 5.x."""
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def order_kept(rows: int, leaving: set[int]) -> list[int]:
    """Return the numbers of the rows that stay, in an order for which few move: the last ones fill the gaps."""
    kept = rows - len(leaving)
    fillers = (row for row in range(kept, rows) if row not in leaving)
    return [next(fillers) if row in leaving else row for row in range(kept)]


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (batch, longest) int64, padded on the left with token 0."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)
