"""Writing completions in a batch whose rows leave as soon as they end, while waiting ones take their places."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pangu_modules.llm.generation.decoding.rows import CachedRows, RecomputedRows, Rows, holds_rows, order_kept
from pangu_modules.llm.generation.decoding.sampling import choose
from pangu_modules.llm.generation.decoding.writing import Writing
from pangu_modules.llm.generation.settings import GenerationSettings

REFILL_SHARE = 0.25  # of the batch that is free before waiting prompts are read: they are read faster together


class BatchDecoder:
    """Writes completions with a model, at most ``batch_size`` at a time.

    Args:
        model: the transformers model, in evaluation mode.
        settings: how to choose tokens.
    """

    def __init__(self, model: Any, settings: GenerationSettings) -> None:
        self._model, self._settings = model, settings
        self._cached = holds_rows(model)
        if not self._cached:
            warnings.warn(
                f"a {model.config.model_type} keeps a state that cannot be moved between batches: its completions are "
                "written one by one, and each token reads the whole text again",
                stacklevel=2,
            )

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]], waiting: Sequence[Writing]) -> None:
        """Write completions, each as if it were alone; those of one prompt stand together, and share its reading."""
        queue, active = list(waiting), list[Writing]()
        rows = self._no_rows()
        pads = next(self._model.parameters()).dtype != torch.float64
        read = _ReadPrompts(prompts, self._no_rows, pads)
        while queue or active:
            free = self._settings.batch_size - len(active)
            if queue and (not active or free >= REFILL_SHARE * self._settings.batch_size):
                entering, queue = queue[:free], queue[free:]
                read.add_to(rows, [writing.prompt for writing in entering])
                active += entering
            active = self._advance(rows, active)

    def _advance(self, rows: Rows, active: list[Writing]) -> list[Writing]:
        """Add a token to each completion, and return those that go on, for which the model has read it."""
        choice = choose(rows.logits, self._settings, [writing.generator for writing in active])
        goes_on = [
            writing.add(token, logprobs)
            for writing, token, logprobs in zip(active, choice.tokens, choice.logprobs, strict=True)
        ]
        kept = order_kept(len(active), {row for row, going in enumerate(goes_on) if not going})
        if len(kept) < len(active):
            rows.keep(kept)
        if kept:
            rows.step([choice.tokens[row] for row in kept])
        return [active[row] for row in kept]

    def _no_rows(self) -> Rows:
        if not self._cached:
            return RecomputedRows(self._model)
        return CachedRows(self._model, self._settings.batch_size)


class _ReadPrompts:
    """Prompts that the model has read, kept as long as completions of them may wait."""

    def __init__(self, prompts: Sequence[Sequence[int]], no_rows: Callable[[], Rows], pads: bool) -> None:
        self._prompts, self._no_rows, self._pads = prompts, no_rows, pads
        self._places: dict[int, tuple[Rows, int]] = {}  # by the prompt's number: in which batch, which row

    def add_to(self, rows: Rows, entering: Sequence[int]) -> None:
        """Add a row for each of these prompts' numbers, in their order; those not read yet are read together."""
        missing = list(dict.fromkeys(number for number in entering if number not in self._places))
        for together in self._read_together(missing):
            group = self._no_rows()
            group.read([self._prompts[number] for number in together])
            self._places |= {number: (group, row) for row, number in enumerate(together)}
        for _, numbers in itertools.groupby(entering, key=lambda number: id(self._places[number][0])):
            places = [self._places[number] for number in numbers]
            rows.add(places[0][0], [row for _, row in places])
        # Further completions of the last prompt may come next, and of no other.
        self._places = {entering[-1]: self._places[entering[-1]]}

    def _read_together(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the prompts' numbers in groups: all, or in float64 those of one length, which need no padding.

        Eager attention takes its softmax in float32, where float64's mask is minus infinity, and padding becomes NaN.
        """
        if self._pads:
            return [list(numbers)] if numbers else []
        groups = itertools.groupby(numbers, key=lambda number: len(self._prompts[number]))
        return [list(together) for _, together in groups]
