"""One update of the weighting model: the surrogate's slope, the preconditioner, the protocol, and two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_llm import tiny_module, token_batch
from torch import nn

from pangu_modules.llm.losses import per_sequence_loss
from pangu_modules.llm.weighting.features import READERS, HiddenStates, TokenLosses, loss_profile
from pangu_modules.llm.weighting.hypergradient import Lookahead, hypergradient
from pangu_modules.llm.weighting.model import DataWeightingModel
from pangu_modules.llm.weighting.preconditioning import NextStep, adam_factor, next_step, schedule_factor
from pangu_modules.llm.weighting.protocol import LossesOf, check_protocol, per_sequence_losses, sequences_with_targets
from pangu_modules.llm.weighting.update import UpdateSettings, update_weighting_model, weigh
from pangu_modules.training.objectives import Objective
from pangu_modules.training.processes import Processes

STEP = NextStep(0.05, None, uses_moments=False)


def weighting_model(**fields):
    torch.manual_seed(1)
    fields = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 128, **fields}
    model = DataWeightingModel.Config(**fields).build()
    nn.init.normal_(model.output.weight)
    return model


def trained():
    losses_of = LossesOf(tiny_module(attn_implementation="eager"))
    return losses_of, dict(losses_of.named_parameters())


def update(model, optimizer, losses_of, parameters, train, target, step, *, reader=None, processes=None, **settings):
    ahead = Lookahead(losses_of, parameters, train, target, step.lr, step.precondition, processes or Processes())
    return update_weighting_model(model, optimizer, ahead, UpdateSettings(**settings), reader)


def share(batch, processes):
    """Return this process's sequences of a batch."""
    return {name: value.chunk(processes.world_size)[processes.rank] for name, value in batch.items()}


# Preconditioner.


def test_adam_factor_is_the_step_that_adamw_takes():
    """theta - lr p g is AdamW's step without momentum, also for parameters that had no gradient before."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.0, 0.9), eps=1e-6, weight_decay=0.0)
    for step in range(4):
        (layer(torch.randn(5, 4, dtype=torch.float64)) ** 2).sum().backward()
        if step < 3:
            layer.weight.grad[:, 3] = 0  # a column whose first gradient comes in the last step
        before = [value.detach().clone() for value in layer.parameters()]
        gradients = [value.grad.clone() for value in layer.parameters()]
        factors = [
            adam_factor(gradient, optimizer.state.get(value, {}), 0.9, 1e-6)
            for gradient, value in zip(gradients, layer.parameters(), strict=True)
        ]
        optimizer.step()
        optimizer.zero_grad()
        for value, old, gradient, factor in zip(layer.parameters(), before, gradients, factors, strict=True):
            torch.testing.assert_close(value.detach(), old - 0.1 * factor * gradient, rtol=1e-12, atol=1e-14)
    assert factors[0].max() < 1e6
    assert (adam_factor(torch.zeros(2), {}, 0.9, 1e-6) == 0).all()


def test_next_step_moves_as_far_as_the_new_gradient_moves_adamw():
    """Of two AdamW steps that differ in the gradient alone, the difference is that of two next steps."""
    torch.manual_seed(0)
    start = nn.Parameter(torch.randn(6, dtype=torch.float64))
    history = [torch.randn(6, dtype=torch.float64) for _ in range(3)]

    def after(gradient):
        value = nn.Parameter(start.detach().clone())
        optimizer = torch.optim.AdamW([value], lr=0.1, betas=(0.9, 0.9999), eps=1e-12)
        for earlier in history:
            value.grad = earlier.clone()
            optimizer.step()
        step = next_step(optimizer, [value])
        moved = -step.lr * step.precondition([gradient])[0] * gradient
        value.grad = gradient.clone()
        optimizer.step()
        return value.detach(), moved

    gradient = torch.randn(6, dtype=torch.float64)
    (one, one_moved), (other, other_moved) = after(gradient), after(-gradient)  # equal squares, so equal P
    torch.testing.assert_close(one - other, one_moved - other_moved, rtol=1e-12, atol=1e-14)


def test_next_step_reads_the_optimizer():
    layer = nn.Linear(2, 2)
    parameters = list(layer.parameters())
    groups = [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.05}]
    step = next_step(torch.optim.AdamW(groups), parameters)
    assert (step.lr, step.uses_moments) == (0.1, False)  # no state before the first step
    factors = step.precondition([torch.ones(2, 2), torch.ones(2)])
    assert [float(factor.mean()) for factor in factors] == pytest.approx([1.0, 0.5])
    assert next_step(torch.optim.SGD(layer.parameters(), lr=0.3), parameters) == NextStep(0.3, None, False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.3)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert next_step(optimizer, parameters).uses_moments
    assert not next_step(optimizer, parameters, "none").uses_moments


def test_the_schedule_s_factor_is_that_of_the_groups_that_learn():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.0}, {"params": [second], "lr": 0.2}])
    assert schedule_factor(optimizer) == 1  # without a schedule
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert schedule_factor(optimizer) == pytest.approx(0.25)


# Protocol.


def test_losses_are_the_sum_of_the_objectives_without_weights():
    module, batch = tiny_module(), token_batch()
    module.objectives["twice"] = Objective(lambda module, batch, outputs: torch.arange(3.0), weight=2.0)
    own = per_sequence_loss(module.compute_outputs(batch)["logits"], batch["input_ids"])
    found = per_sequence_losses(module, {**batch, "sample_weight": torch.zeros(3)})
    torch.testing.assert_close(found, own + torch.tensor([0.0, 2.0, 4.0]))


def test_modules_without_losses_per_sequence_are_refused():
    class Scalar(nn.Module):
        def sequence_losses(self, batch):
            return torch.tensor(1.0)

    with pytest.raises(TypeError, match=r"implement sequence_losses\(batch\)"):
        check_protocol(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"losses of shape \(\) for a batch of 3"):
        per_sequence_losses(Scalar(), token_batch())


def test_sequences_with_targets():
    labels = torch.tensor([[1, 2, -100], [1, -100, -100], [-100, -100, 4]])
    assert sequences_with_targets({"labels": labels}).tolist() == [True, False, True]
    assert sequences_with_targets({"image": torch.zeros(2, 3), "labels": torch.zeros(2)}) is None


# Updates.


@pytest.mark.parametrize("normalize_h", [False, True])
def test_an_update_goes_down_the_surrogate(normalize_h):
    losses_of, parameters = trained()
    train, target = token_batch(6, seed=1), token_batch(3, seed=2)
    model, reference = weighting_model(), weighting_model()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    result = update(model, sgd, losses_of, parameters, train, target, STEP, engine="dot", normalize_h=normalize_h)
    w = reference.weights(reference(train["input_ids"]))
    h = hypergradient(Lookahead(losses_of, parameters, train, target, lr=0.05), w.detach(), engine="dot").h
    torch.testing.assert_close(result.h, h)
    torch.testing.assert_close(result.weights, w.detach())
    h = (h - h.mean()) / (h.std() + 1e-8) if normalize_h else h
    (w * h).sum().neg().backward()
    for (name, value), old in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value.detach(), (old - old.grad).detach(), rtol=1e-5, atol=1e-7, msg=name)
    assert all(value.grad is None for value in [*model.parameters(), *parameters.values()])


def test_updates_make_the_target_better_than_uniform_weights_do():
    """Many updates on one pair of batches: a step with the learned weights gets the target lower."""
    losses_of, parameters = trained()
    train, target = token_batch(6, seed=1), token_batch(3, seed=2)
    train["input_ids"][:2] = target["input_ids"][:2]  # two sequences help
    model = DataWeightingModel.Config(hidden_size=16, num_heads=2, vocab_size=128).build()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    results = [update(model, adam, losses_of, parameters, train, target, STEP) for _ in range(15)]
    assert results[-1].target_loss < results[0].target_loss
    assert results[-1].weights[:2].min() > 1 / 6 > results[-1].weights[2:].max()


def test_a_hypergradient_that_is_not_finite_changes_nothing():
    losses_of, parameters = trained()
    model = weighting_model()
    before = [value.clone() for value in model.parameters()]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = NextStep(float("inf"), None, uses_moments=False)
    result = update(model, adam, losses_of, parameters, token_batch(4), token_batch(2), step)
    assert result.skipped
    assert all(torch.equal(value, old) for value, old in zip(model.parameters(), before, strict=True))
    assert all(value.isfinite().all() for value in parameters.values())


def test_hidden_states_come_from_the_forward_pass_of_the_losses():
    losses_of, parameters = trained()
    states = HiddenStates(losses_of.module)
    model = weighting_model(encoder="lm", feature_size=states.size)
    batch = {**token_batch(4), "attention_mask": torch.ones(4, 10, dtype=torch.long)}
    batch["attention_mask"][1, 5:] = 0
    hidden = losses_of.module.model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    means = torch.stack([hidden[0].mean(0), hidden[1, :5].mean(0), hidden[2].mean(0), hidden[3].mean(0)])
    expected = model.weights(model(features=means)).detach()
    adam = torch.optim.AdamW(model.parameters())
    for engine in ("fd", "jvp", "dot", "exact"):
        result = update(
            weighting_model(encoder="lm", feature_size=states.size),
            adam,
            losses_of,
            parameters,
            batch,
            token_batch(2),
            STEP,
            engine=engine,
            reader=states,
        )
        torch.testing.assert_close(result.weights, expected)
    torch.testing.assert_close(weigh(model, batch, means).own, expected)
    assert not states.forget()


def test_profiles_of_token_losses_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 12, 30) * 2, torch.randint(30, (4, 12))
    labels[1, 6:] = -100
    labels[2] = -100
    labels[3, 2:] = -100  # one target
    found = loss_profile(logits, labels)
    for row, count in ((0, 11), (1, 5), (3, 1)):
        losses = [-logits[row, t].log_softmax(0)[labels[row, t + 1]].item() for t in range(count)]
        figures = [np.mean(losses), np.std(losses), *np.quantile(losses, [0.1, 0.3, 0.5, 0.7, 0.9])]
        np.testing.assert_allclose(found[row], (np.array(figures) - 4) / 2, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[2], torch.zeros(7))


def test_losses_are_those_of_the_same_forward_pass():
    losses_of, parameters = trained()
    reader = TokenLosses(losses_of.module)
    model = weighting_model(encoder="losses", feature_size=reader.size)
    batch = token_batch(4)
    logits = losses_of.module.compute_outputs(batch)["logits"].detach()
    expected = weigh(model, batch, loss_profile(logits, batch["input_ids"])).own
    adam = torch.optim.AdamW(weighting_model(encoder="losses", feature_size=7).parameters())
    result = update(model, adam, losses_of, parameters, batch, token_batch(2), STEP, reader=reader)
    torch.testing.assert_close(result.weights, expected.detach())
    assert not reader.forget()


# Two processes.


@pytest.mark.parametrize("encoder", ["tiny", "lm", "losses"])
def test_two_processes_equal_one(tmp_path, encoder):
    command = [sys.executable, __file__, str(tmp_path), encoder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment) for rank in (0, 1)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    whole = run_updates(encoder, Processes(), sync=True)
    parts = [torch.load(tmp_path / f"{encoder}{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ("h", "weights"):
        # measured: 1e-6 of the largest
        both = torch.cat([part["sync"][name] for part in parts])
        torch.testing.assert_close(both, whole[name], rtol=1e-4, atol=1e-4 * float(whole[name].abs().max()))
    for part in parts:
        assert part["sync"]["target_loss"] == pytest.approx(whole["target_loss"], rel=1e-5)
        for name, value in whole["model"].items():
            # measured: 2e-6 after two SGD steps
            torch.testing.assert_close(part["sync"]["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    for mode in ("sync", "local"):
        for name, value in parts[0][mode]["model"].items():
            assert torch.equal(value, parts[1][mode]["model"][name]), name
    assert float(parts[0]["local"]["weights"].sum()) == pytest.approx(1, abs=1e-5)
    # local weights: the update is the mean of those of both batches, each with the common step and target
    assert not torch.allclose(parts[0]["local"]["model"]["output.weight"], whole["model"]["output.weight"], atol=1e-4)


def run_updates(encoder, processes, sync):
    losses_of, parameters = trained()
    states = READERS[encoder](losses_of.module) if encoder in READERS else None
    model = weighting_model(encoder=encoder, feature_size=states.size if states else None)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(2):
        train, target = token_batch(6, seed=number), token_batch(4, seed=10 + number)
        result = update(
            model,
            sgd,
            losses_of,
            parameters,
            share(train, processes),
            share(target, processes),
            STEP,
            engine="dot",  # fd would enlarge the rounding of sums in another order
            reader=states,
            processes=processes,
            sync_weights=sync,
        )
    found = {"h": result.h, "weights": result.weights, "target_loss": result.target_loss}
    return {**found, "model": {name: value.detach() for name, value in model.state_dict().items()}}


if __name__ == "__main__":
    folder, encoder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{encoder}", rank=rank, world_size=2)
    group = Processes.current()
    found = {"sync": run_updates(encoder, group, sync=True), "local": run_updates(encoder, group, sync=False)}
    torch.save(found, f"{folder}/{encoder}{rank}.pt")
    dist.destroy_process_group()
