"""Entries of the cache are made once, and the run that makes one draws the same random numbers as the next."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pangu_modules.common.cache import cached


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_making_an_entry_does_not_move_the_random_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path))
    made = []

    def make(path: Path) -> None:
        made.append(draw())
        path.write_text("made")

    after = []
    for _ in range(2):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert cached("entry", make).read_text() == "made"
        after.append(draw())
    assert len(made) == 1
    assert after[0] == after[1] == made[0]
