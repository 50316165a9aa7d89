"""The keys and values of a batch of texts under way: rows leave and enter in place, and no step copies what is there.

All rows end at the same column: a text shorter than the longest begins further right, and the attention mask hides what
is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64  # room for new tokens beyond those there, at least; as many again as there are otherwise


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, each (rows, heads, columns, width), as views of buffers with room for more."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []  # keys and values, each (rows at most, heads, columns at most, width)
        self._rows, self._start, self._end = 0, 0, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add columns to all rows, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows = len(key_states)
        num_new = key_states.shape[-2]
        self._reserve((key_states, value_states), self._rows, right=num_new)
        self._end += num_new
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end - num_new : self._end] = states
        return self._show()

    def add_rows(self, other: GrowingLayer, indices: Sequence[int], most_rows: int) -> None:
        """Add rows of another layer, below the ones that are here.

        Args:
            other: the layer that they are copied from.
            indices: their numbers there.
            most_rows: rows that this layer will have at most.
        """
        if other.keys is None or other.values is None:  # a layer without keys of its own
            return
        theirs = (other.keys, other.values)
        if not self.is_initialized:
            self.lazy_initialization(*theirs)
        columns = other._end - other._start
        wider = max(0, columns - (self._end - self._start))
        self._reserve(theirs, most_rows, left=wider)
        self._start -= wider
        first, self._rows = self._rows, self._rows + len(indices)
        for buffer, states in zip(self._buffers, theirs, strict=True):
            # What is left of a row's text is hidden, but 0 times NaN is NaN.
            buffer[:first, :, self._start : self._start + wider] = 0
            buffer[first : self._rows, :, self._start : self._end - columns] = 0
            buffer[first : self._rows, :, self._end - columns : self._end] = states[list(indices)]
        self._show()

    def keep_rows(self, moves: Sequence[tuple[int, int]], rows: int, hidden: int) -> None:
        """Keep the first rows, after some were moved there, and forget columns that are hidden in all of them.

        Args:
            moves: numbers of rows, from where to where.
            rows: number of rows that stay.
            hidden: number of the first columns that no row needs.
        """
        if not self.is_initialized:
            return
        for source, target in moves:
            for buffer in self._buffers:
                buffer[target, :, self._start : self._end] = buffer[source, :, self._start : self._end]
        self._rows = rows
        self._start += hidden
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[: self._rows, :, self._start : self._end] for buffer in self._buffers)
        return self.keys, self.values

    def _reserve(self, like: tuple[Tensor, Tensor], rows: int, *, left: int = 0, right: int = 0) -> None:
        """Make room for rows and for columns on both sides; larger buffers leave the forgotten columns behind."""
        old, columns = self._buffers, self._end - self._start
        most_rows, most_columns = (old[0].shape[0], old[0].shape[2]) if old else (0, 0)
        if left <= self._start and self._end + right <= most_columns and rows <= most_rows:
            return
        needed = left + columns + right
        sizes = max(rows, most_rows), needed + max(SPARE_COLUMNS, needed)
        self._buffers = [part.new_empty(sizes[0], part.shape[1], sizes[1], part.shape[3]) for part in like]
        for buffer, before in zip(self._buffers, old, strict=False):
            buffer[: self._rows, :, left : left + columns] = before[: self._rows, :, self._start : self._end]
        self._start, self._end = left, left + columns


class GrowingCache(Cache):
    """A `GrowingLayer` for each layer of the model that has keys and values."""

    layers: list[GrowingLayer]  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def add_rows(self, other: GrowingCache, indices: Sequence[int], most_rows: int) -> None:
        """Add rows of another cache; see `GrowingLayer.add_rows`."""
        while len(self.layers) < len(other.layers):
            self.layers.append(GrowingLayer())
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.add_rows(theirs, indices, most_rows)

    def keep_rows(self, moves: Sequence[tuple[int, int]], rows: int, hidden: int) -> None:
        """Keep the first rows; see `GrowingLayer.keep_rows`."""
        for layer in self.layers:
            layer.keep_rows(moves, rows, hidden)


def joined_masks(first: Tensor, second: Tensor) -> Tensor:
    """Return two attention masks, each (rows, columns), as one, with zeros left of the narrower one."""
    columns = max(first.shape[1], second.shape[1])
    padded = [torch.nn.functional.pad(mask, (columns - mask.shape[1], 0)) for mask in (first, second)]
    return torch.cat(padded)
