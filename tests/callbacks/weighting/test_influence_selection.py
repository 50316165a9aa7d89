"""InfluenceSelection in a Trainer: what it keeps, when it measures, resuming, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from quiet_trainer import StopAt
from tiny_llm import tiny_module
from weighted_runs import Seen, fit

from callbacks import DWMReweighting, InfluenceSelection
from pangu_modules.common.errors import UsageError
from pangu_modules.llm.weighting.baselines.influence import InfluenceModel, measured_influences
from pangu_modules.llm.weighting.hypergradient import hypergradient
from pangu_modules.llm.weighting.preconditioning import NextStep


def selection(**fields):
    return InfluenceSelection.Config(**{"num_rounds": 3, "probes": 48, "val_batch_size": 16, **fields}).build(
        name="mates"
    )


class Parabolas(torch.nn.Module):
    """The loss of x is (theta - x)^2 / 2."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, batch):
        return (self.theta - batch["x"]).square() / 2


def test_influence_is_the_fall_of_the_target_s_loss():
    model, train, target = Parabolas(), torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0]).double()
    pairs = [({"x": train, "input_ids": train[:, None]}, {"x": target})]
    sequences, values = measured_influences(
        model, dict(model.named_parameters()), iter(pairs), NextStep(1e-4, None, False)
    )
    assert [float(value) for value in sequences] == [1.0, -2.0]
    for x, value in zip(train.tolist(), values, strict=True):
        step = 1e-4 * x  # of gradient descent on this sequence alone, from 0
        fall = (3.0**2 - (3.0 - step) ** 2) / 2
        assert value == pytest.approx(fall / 1e-4, rel=1e-3)  # first order in a step of 1e-4


def test_regression_ranks_unseen_sequences_by_their_tokens():
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 8, (20,), generator=generator) for _ in range(300)]
    influences = [float((tokens == 3).sum() - (tokens == 5).sum()) for tokens in sequences]
    model = InfluenceModel.fit(sequences[:200], influences[:200], alpha=1.0)
    correlation = torch.corrcoef(torch.tensor([model.score(sequences[200:]).tolist(), influences[200:]]))[0, 1]
    assert correlation > 0.8


def test_first_part_is_uniform_then_what_helps_the_target_is_kept(tmp_path):
    seen = Seen()
    fit(tmp_path, selection(), seen, steps=60, module=tiny_module())
    assert all(torch.equal(weights, torch.ones(4)) for weights in seen.weights[:20])
    weights, domains = torch.cat(seen.weights[20:]), torch.cat(seen.domains[20:])
    assert weights[domains == 0].mean() > 2 * weights[domains == 1].mean()
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)  # float32


def test_measuring_leaves_training_as_it_was(tmp_path):
    modules = [tiny_module(), tiny_module()]
    fit(tmp_path, selection(num_rounds=1), module=modules[0])
    fit(tmp_path, selection(keep=1.0), module=modules[1])  # measures twice, and keeps everything
    for plain, measured in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(plain, measured)


@pytest.mark.parametrize("step", [5, 8, 10])  # in the middle of a part, and at its end
def test_resumes_exactly(tmp_path, step):
    whole, second = Seen(), Seen()
    straight, resumed = tiny_module(), tiny_module(seed=5)
    fit(tmp_path / "whole", selection(), whole, module=straight)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "cut", selection(), StopAt(step, tmp_path / "a.ckpt"), module=tiny_module())
    fit(tmp_path / "cut", selection(), second, module=resumed, ckpt_path=tmp_path / "a.ckpt")
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(torch.stack(second.weights), torch.stack(whole.weights[step:]))


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"'mates' and 'dwm' both write"):
        fit(tmp_path, selection(), DWMReweighting.Config().build(name="dwm"))
    with pytest.raises(UsageError, match=r"target='val'"):
        fit(tmp_path, selection(), target=False)

    def diverged(*arguments, **options):
        found = hypergradient(*arguments, **options)
        found.h.fill_(float("nan"))
        return found

    monkeypatch.setattr("pangu_modules.llm.weighting.baselines.influence.hypergradient", diverged)
    with pytest.raises(RuntimeError, match=r"'mates': no measured influence was finite"):
        fit(tmp_path, selection())
