"""The races of DWM: both sides compute the same, and what is not installed is named."""

import importlib.util
import types

import pytest
import torch

from benchmarks.methods.dwm import speed as dwm
from benchmarks.methods.dwm.peers import unrolled_slopes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(dwm, "LLAMA", {**dwm.LLAMA, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 64})


@pytest.mark.parametrize("engine", dwm.BOUNDS)
def test_engines_agree(engine):
    error, bound = dwm.engine_contest(engine).check()
    assert error <= bound


def test_both_sides_take_the_same_steps():
    error, bound = dwm.amortized_contest().check()
    assert error <= bound
    run = dwm.new_run()
    plain, weighted = dwm.new_run(), dwm.new_run()
    for _ in range(3):
        run.step()
        weighted.update("fd")  # leaves the trained model alone
        weighted.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters.values(), weighted.parameters.values(), strict=True))
    weighted.step(weighted=True)
    run.step()
    pairs = zip(run.parameters.values(), weighted.parameters.values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_the_plain_unroll_has_the_same_gradient(monkeypatch):
    run = dwm.new_run("eager")
    found = torch.cat([slope.flatten() for slope in dwm.own_slopes(run)])
    sides = unrolled_slopes(run.weighting, run.module, run.losses_of, run.train, run.target, lr=1e-3)
    expected = torch.cat([slope.flatten() for slope in sides])
    # Rounding of float32 losses that hardly differ at this width; measured: 0.03. With the other sign it were 2.
    assert (found - expected).norm() < 0.1 * expected.norm()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "TorchOpt is not installed" in dwm.benchmark().setup
    assert dwm.peer_contest().races[0].peer_name == "a plain functional unroll"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    assert "TorchOpt's MetaSGD" in dwm.benchmark().setup
