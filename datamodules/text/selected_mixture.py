"""SelectedMixtureData: a mixture of which offline data selection keeps a part before training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from pydantic import Field
from torch.utils.data import Dataset

from datamodules.text.mixture import MixtureData
from datamodules.text.windows import Windows
from pangu_modules.llm.weighting.baselines.ngrams import Selection, offline_scorer
from pangu_modules.llm.weighting.baselines.weights import threshold_of


class SelectedMixtureData(MixtureData):
    """`MixtureData` whose training windows are those that an offline method ranks highest for the target.

    Weights inside the batch do not replace such a selection: what a selection keeps still differs in worth. Weighting
    models learned on the raw mixture serve the selected one (``frozen`` of `DWMReweighting`).
    """

    class Config(MixtureData.Config):
        """The mixture, and what is kept of it."""

        selection: Selection = Field(
            "dsir",
            description="What ranks training windows: perplexity (bigrams of the target), dsir (hashed n-gram "
            "importance), classifier (logistic regression, target against raw data).",
        )
        keep: float = Field(0.5, gt=0, le=1, description="Share of the training windows that is kept.")

    config: Config

    def _take(self, datasets: Mapping[str, Dataset[Any]]) -> None:
        super()._take({**datasets, "train": self._selected(datasets["train"], datasets["val"])})

    def _selected(self, windows: Any, target: Any) -> Windows:
        """Return the training windows that the method ranks highest."""
        raw = list(windows.tokens.long())
        scorer = offline_scorer(self.config.selection, list(target.tokens.long()), raw, self.config.seed)
        scores = scorer.score(raw)
        kept: Windows = windows.chosen(torch.from_numpy(scores >= threshold_of(scores.tolist(), self.config.keep)))
        rank_zero_info(f"train: {self.config.selection} keeps {len(kept)} of {len(raw)} windows")
        return kept
