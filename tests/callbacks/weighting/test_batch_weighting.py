"""BatchWeighting in a Trainer: the weights in the batch, their order of randomness, resuming, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pydantic import ValidationError
from quiet_trainer import StopAt
from tiny_llm import tiny_module
from weighted_runs import Seen, fit

from callbacks import BatchWeighting, DWMReweighting
from pangu_modules.common.errors import UsageError
from pangu_modules.llm.weighting.baselines.ngrams import sequences_of
from pangu_modules.llm.weighting.model import effective_batch_size


def weighting(method, num_rounds=5, seed=0, **fields):
    config = BatchWeighting.Config(method={"kind": method, **fields}, num_rounds=num_rounds, seed=seed)
    return config.build(name="weighting")


def weights_of(folder, **fields):
    seen = Seen()
    fit(folder, weighting(**fields), seen)
    return seen


@pytest.mark.parametrize("method", ["uniform", "random", "loss", "perplexity", "dsir", "classifier"])
def test_weights_have_mean_1(tmp_path, method):
    seen = weights_of(tmp_path, method=method)
    assert len(seen.weights) == 12
    for weights in seen.weights:
        assert weights.shape == (4,)
        assert weights.min() >= 0
        assert weights.mean().item() == pytest.approx(1, abs=1e-6)  # float32
    if method != "uniform":
        assert any((weights - 1).abs().max() > 0.1 for weights in seen.weights)


def test_uniform_weights_change_nothing(tmp_path):
    modules = [tiny_module(), tiny_module()]
    fit(tmp_path, module=modules[0])
    fit(tmp_path, weighting(method="uniform"), module=modules[1])
    for plain, weighed in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(weighed, plain, rtol=0, atol=1e-6)  # the mean is taken in another order


@pytest.mark.parametrize("method", ["perplexity", "dsir", "classifier"])
def test_offline_scores_keep_what_is_like_the_target(tmp_path, method):
    seen = weights_of(tmp_path, method=method, keep=0.4)  # less than the half that is clean
    chosen = [weights for weights in seen.weights if len(weights.unique()) > 1]  # the others: all kept, or none
    assert len(chosen) > 6
    for weights in chosen:
        assert len(weights[weights > 0].unique()) == 1
    weights, domains = torch.cat(seen.weights), torch.cat(seen.domains)
    assert weights[domains == 0].mean() > 3 * weights[domains == 1].mean()  # a batch of noise alone is uniform


def test_random_weights_follow_the_rounds_of_their_effective_batch(tmp_path):
    seen = weights_of(tmp_path, method="random", ess=(1.0, 0.5))
    shares = [effective_batch_size(weights / 4).item() / 4 for weights in seen.weights]
    assert shares[:6] == pytest.approx([1.0] * 6, abs=1e-4)
    assert shares[6:] == pytest.approx([0.5] * 6, abs=1e-4)


def test_random_weights_follow_their_seed(tmp_path):
    first, again, other = (weights_of(tmp_path, method="random", seed=seed).weights for seed in (0, 0, 1))
    torch.testing.assert_close(torch.stack(first), torch.stack(again))
    assert not torch.allclose(torch.stack(first), torch.stack(other))
    assert len({tuple(weights.tolist()) for weights in first}) == 12


@pytest.mark.parametrize(("prefer", "sign"), [("high", 1), ("low", -1)])
def test_loss_weights_by_loops(tmp_path, prefer, sign):
    seen = weights_of(tmp_path, method="loss", prefer=prefer, tau=0.5)
    for losses, weights in zip(seen.losses, seen.weights, strict=True):
        shares = [math.exp(sign * loss / 0.5) for loss in losses.tolist()]
        assert weights.tolist() == pytest.approx([4 * share / sum(shares) for share in shares], rel=1e-4)  # float32


def test_the_report_tells_weights_by_domain_and_part_of_training(tmp_path):
    fit(tmp_path, weighting(method="dsir", num_rounds=2))
    rows = json.loads((tmp_path / "report_parts" / "weighting-1-domains.json").read_text())["rows"]
    assert [row["domain"] for row in rows] == ["clean", "noise"]
    assert rows[0]["round 1"] > 1 > rows[1]["round 1"]
    assert sum(row["tokens"] for row in rows) == 12 * 4 * 15
    rounds = json.loads((tmp_path / "report_parts" / "weighting-2-rounds.json").read_text())["rows"]
    assert [row["round"] for row in rounds] == [0, 1]


@pytest.mark.parametrize("method", ["random", "dsir"])
def test_resumes_exactly(tmp_path, method):
    whole, first, second = Seen(), Seen(), Seen()
    straight, killed, resumed = tiny_module(), tiny_module(), tiny_module(seed=5)
    fit(tmp_path / "whole", weighting(method=method), whole, module=straight)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "cut", weighting(method=method), first, StopAt(7, tmp_path / "a.ckpt"), module=killed)
    fit(tmp_path / "cut", weighting(method=method), second, module=resumed, ckpt_path=tmp_path / "a.ckpt")
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(torch.stack(second.weights), torch.stack(whole.weights[7:]))
    tables = [(tmp_path / name / "report_parts" / "weighting-1-domains.json").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]


def test_padding_is_no_part_of_a_sequence():
    batch = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert [tokens.tolist() for tokens in sequences_of(batch)] == [[5, 6], [7, 8, 9]]


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match=r"'weighting' and 'dwm' both write"):
        fit(tmp_path, weighting(method="uniform"), DWMReweighting.Config().build(name="dwm"))
    with pytest.raises(
        ValueError, match=r"'weighting': scoring sequences needs the target, val_dataset of the datamodule, and Mixed"
    ):
        fit(tmp_path, weighting(method="dsir"), target=False)
    for ess in ((), (0.5, 0.0), (1.5,)):
        with pytest.raises(ValidationError, match="a share of the batch"):
            BatchWeighting.Config(method={"kind": "random", "ess": ess})
