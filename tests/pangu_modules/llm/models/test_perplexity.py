"""Perplexity against a loop over tokens, and the mean loss it is made of."""

from __future__ import annotations

import math

import pytest
import torch

from pangu_modules.llm.models.perplexity import MeanLoss, perplexity

BATCH = {"input_ids": torch.randint(1, 61, (3, 8), generator=torch.Generator().manual_seed(1))}


def test_perplexity_equals_a_loop_over_tokens(tiny_model):
    model = tiny_model("llama").train()
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 6:], mask[2, :3] = 0, 0
    losses = []
    with torch.no_grad():
        logits = model(BATCH["input_ids"], attention_mask=mask).logits
    for row in range(3):
        for position in range(7):
            if mask[row, position + 1]:
                target = BATCH["input_ids"][row, position + 1]
                losses.append(-float(logits[row, position].log_softmax(-1)[target]))
    want = math.exp(sum(losses) / len(losses))
    assert len(losses) == 7 + 5 + 5
    assert perplexity(model, [BATCH | {"attention_mask": mask}]) == pytest.approx(want, rel=1e-12)
    assert model.training


def test_perplexity_of_single_tokens_is_refused(tiny_model):
    with pytest.raises(ValueError, match="at least two tokens"):
        perplexity(tiny_model("llama"), [{"input_ids": torch.ones(2, 1, dtype=torch.long)}])


def test_the_mean_counts_targets_not_sequences_or_batches():
    mean = MeanLoss()
    labels = torch.tensor([[1, 2, 3, 4], [1, 2, -100, -100]])  # 3 targets and 1
    mean.update(torch.tensor([1.0, 2.0]), labels)
    mean.update(torch.tensor([7.0]), labels[1:])
    assert mean.compute() == (3 * 1.0 + 2.0 + 7.0) / 5


def test_the_sums_are_float64():
    mean = MeanLoss()
    labels = torch.ones(1, 2, dtype=torch.long)
    for value in (1.0, 2.0**-40):
        mean.update(torch.tensor([value]), labels)
    assert mean.compute() == (1 + 2**-40) / 2


def test_a_nan_is_not_left_out():
    mean = MeanLoss()
    mean.update(torch.tensor([math.nan, 1.0]), torch.ones(2, 4, dtype=torch.long))
    assert math.isnan(mean.compute())
