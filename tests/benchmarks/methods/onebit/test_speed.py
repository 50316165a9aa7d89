"""The races of one-bit weights: sides that compute the same, and weights that go through memory."""

import pytest
import torch
from tiny_llm import TINY_LLAMA, token_batch

from benchmarks.methods.onebit import speed as onebit
from benchmarks.methods.onebit.speed_training import Step, binarized, step_contest
from benchmarks.races.race import run_contests
from pangu_modules.llm.models.loading import new_causal_lm
from pangu_modules.llm.onebit.plan import binary_layers


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(onebit, "ROTATION", 1e5)
    monkeypatch.setattr(onebit, "PRODUCTS", 1.0)


def test_layer_races_compare_the_same_layer_and_rotate(short):
    contest = onebit.decode_contest(24, 72)
    error, bound = contest.check()
    assert error <= bound
    entries = run_contests([contest], repeats=1, report=lambda line: None)
    assert [entry["target"] for entry in entries] == [1.5, None]
    layer = onebit.binary_linear(24, 72)
    copies = onebit.copies_of(layer)
    assert len(copies) == round(1e5 / (4 * 24 * 72))
    assert len({copy.weight.data_ptr() for copy in copies}) == len(copies)


def test_a_measurement_is_the_time_of_one_forward(short):
    class Counting(torch.nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    layers = [Counting(8, 8) for _ in range(3)]
    measure = onebit.microseconds(layers, torch.zeros(1, 8))
    measure()
    assert [layer.calls for layer in layers] == [7, 7, 6]
    measure()  # goes on where the last one ended
    assert [layer.calls for layer in layers] == [14, 13, 13]


def test_training_races_start_from_the_same_function_and_train_it():
    contest = step_contest("toy", "a toy", {**TINY_LLAMA, "max_position_embeddings": 128})
    assert contest.check() == (0.0, 0.0)
    torch.manual_seed(0)
    model = binarized(new_causal_lm("llama", TINY_LLAMA))
    assert len(binary_layers(model)) == 14
    assert all(float(layer.t) == pytest.approx(10.4) for layer in binary_layers(model).values())
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    Step(model, token_batch()["input_ids"])()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
