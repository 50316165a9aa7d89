"""The auxiliary objective in a Trainer: value, gradient under checkpointing, deepseek's bias, and what is refused."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from tiny_llm import tiny_module, token_batch
from tiny_moge import moge_module, short_trainer
from tiny_text import TokenBatches

from callbacks import RouterBalancing
from pangu_modules import CausalLM
from pangu_modules.llm.moge.auxiliary_loss import auxiliary_loss, selected_counts, z_loss
from pangu_modules.llm.moge.block import moge_blocks, recorded_routings
from pangu_modules.training.objectives import evaluate


def balancing(**fields: Any) -> RouterBalancing:
    callback: RouterBalancing = RouterBalancing.Config(method=fields).build(name="balance")
    return callback


def with_objectives(module: CausalLM, **fields: Any) -> CausalLM:
    balancing(**fields).setup(lightning.Trainer(accelerator="cpu", logger=False), module, "fit")
    return module


def test_the_objectives_join_the_loss_with_their_weights() -> None:
    module = with_objectives(moge_module(), coefficient=0.5, z_coefficient=0.25)
    batch = token_batch()
    found = evaluate(module.objectives, module, batch, module.compute_outputs(batch))
    total, values = found.total, found.values
    routings = recorded_routings(module.model)
    # means of equal float32 numbers, rounded
    assert float(values["balance"]) == pytest.approx(float(auxiliary_loss(routings)), rel=1e-6)
    assert float(values["balance_z"]) == pytest.approx(float(z_loss(routings)), rel=1e-6)
    expected = values["language_modelling"] + 0.5 * values["balance"] + 0.25 * values["balance_z"]
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def test_empty_takes_the_models_coefficient_and_0_adds_nothing() -> None:
    module = with_objectives(moge_module(model_args={"router_aux_loss_coef": 0.02}))
    assert module.objectives["balance"].weight == 0.02
    assert set(with_objectives(moge_module(), coefficient=0).objectives) == {"language_modelling"}


def test_recomputed_activations_do_not_change_the_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        module = with_objectives(moge_module(gradient_checkpointing=checkpointing), coefficient=1.0).train()
        batch = token_batch()
        total = evaluate(module.objectives, module, batch, module.compute_outputs(batch)).total
        total.backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_training_with_it_evens_out_the_load(tmp_path: Any) -> None:
    spreads = []
    for coefficient in (0.0, 1.0):
        module = moge_module(optimizer={"lr": 1e-2, "warmup_share": 0.0, "schedule": "constant"})
        fit = short_trainer(tmp_path, balancing(coefficient=coefficient), max_steps=20)
        fit.fit(module, datamodule=TokenBatches.Config().build())
        assert ("train/balance" in fit.callback_metrics) == (coefficient > 0)
        with torch.no_grad():
            module.model(token_batch(batch=16, seq=16, seed=5)["input_ids"])
        counts = torch.stack([selected_counts(routing) for routing in recorded_routings(module.model)]).float()
        spreads.append(float((counts.std(-1) / counts.mean(-1)).mean()))
    assert spreads[1] < 0.85 * spreads[0]  # measured 0.126 against 0.176


def test_deepseeks_bias_moves_against_the_load_of_the_whole_step(tmp_path: Any) -> None:
    """Two micro-batches a step: one update a step, by the sign of what their summed load lacks to the mean."""

    class Recorder(lightning.Callback):
        loads: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            self.loads.append(torch.stack([selected_counts(routing) for routing in recorded_routings(pl_module.model)]))

    module = moge_module(model_args={"router": "deepseek", "bias_update_speed": 0.01})
    recorder = Recorder()
    fit = short_trainer(tmp_path, balancing(coefficient=0), recorder, accumulate_grad_batches=2, max_steps=3)
    fit.fit(module, datamodule=TokenBatches.Config().build())
    assert len(recorder.loads) == 6
    for layer, (_, block) in enumerate(moge_blocks(module.model)):
        bias = torch.zeros(8)
        for first, second in zip(recorder.loads[::2], recorder.loads[1::2], strict=True):
            load = (first[layer] + second[layer]).float()
            bias += 0.01 * torch.sign(load.mean() - load)
        torch.testing.assert_close(block.gate.e_score_correction_bias, bias, rtol=0, atol=1e-7)  # sums of 3 steps


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'balance': the model has no mixture of experts.*PanguProMoE"):
        with_objectives(tiny_module())
