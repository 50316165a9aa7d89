"""ProgressiveBinarization in a Trainer: schedule, exact binary end, exact resume, report, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace
from typing import Any, Literal

import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import FSDPStrategy
from quiet_trainer import quiet_trainer
from tiny_llm import TINY_LLAMA, tiny_module
from tiny_text import TokenBatches

from callbacks import Distillation, ExactResume, ProgressiveBinarization, StructuredPruning, WeightAverage
from pangu_modules import CausalLM, LoRAPlan, OneBitConfig, Plan, Recipe, SlimLLMConfig
from pangu_modules.engine.run import fit_stage
from pangu_modules.llm.onebit.plan import binarized_linears, binary_layers, rows_with_other_values, target_names

# 10 steps: 8 of the schedule, 2 of the tail
PLAIN = OneBitConfig(init="none", schedule_steps=0.8, tail_share=0.2)


class Watch(lightning.Callback):
    """Notes t, the tail and a latent weight after every step, and saves checkpoints after the steps asked for."""

    def __init__(self, save: dict[int, Any] | None = None) -> None:
        self.save = save or {}
        self.seen: list[tuple[int, float, bool, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        layers = binary_layers(module).values()
        assert len({float(layer.t) for layer in layers}) == 1
        layer = next(iter(layers))
        self.seen.append((trainer.global_step, float(layer.t), bool(layer.hard), layer.weight.detach().clone()))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        path = self.save.pop(trainer.global_step, None)
        if path is not None:
            trainer.save_checkpoint(path)


def small_module() -> CausalLM:
    return tiny_module(model_args={"num_hidden_layers": 1})


class Later(Plan):
    """A plan of some other callback; it changes nothing."""

    kind: Literal["later"] = "later"

    def apply(self, module):
        """Do nothing."""


def binarization(onebit=PLAIN, name="binarize", **fields):
    return ProgressiveBinarization.Config(method=onebit, **fields).build(name=name)


def fit(tmp_path, *callbacks, module=None, ckpt_path=None, **arguments):
    module = module or small_module()
    trainer = quiet_trainer(tmp_path, list(callbacks), **{"max_steps": 10, "limit_val_batches": 0} | arguments)
    data = TokenBatches.Config().build()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, trainer


def recipe(onebit=PLAIN, callbacks=None, **trainer):
    return Recipe(
        module=CausalLM.Config(architecture="llama", model_args={**TINY_LLAMA, "num_hidden_layers": 1}),
        data=TokenBatches.Config(),
        callbacks={**(callbacks or {}), "binarize": ProgressiveBinarization.Config(method=onebit)},
        trainer={"max_steps": 10, "accelerator": "cpu", **trainer},
    )


def test_t_follows_the_steps_and_every_row_ends_with_two_values(tmp_path):
    watch = Watch()
    module, _ = fit(tmp_path, binarization(measure=False), watch)
    assert [step for step, *_ in watch.seen] == list(range(10))
    for step, t, hard, _ in watch.seen:
        phase = min(20, 1 + 20 * step // 8)
        assert t == pytest.approx(1.3 * (math.exp(0.22 * phase) - 1), rel=1e-6)
        assert hard == (step >= 8)
    plan = module.config.structure[0]
    linears = binarized_linears(module.model, plan)
    assert len(linears) == 7
    assert sum(rows_with_other_values(linear) for linear in linears.values()) == 0
    assert not binary_layers(module)


def test_accumulated_gradients_count_optimizer_steps(tmp_path):
    watch = Watch()
    fit(tmp_path, binarization(measure=False), watch, accumulate_grad_batches=2, max_steps=5)
    assert len(watch.seen) == 10
    by_step = {step: {t for other, t, *_ in watch.seen if other == step} for step, *_ in watch.seen}
    assert all(len(values) == 1 for values in by_step.values())
    assert max(by_step) == 4


def test_latent_weights_rest_in_the_tail_and_all_else_trains(tmp_path):
    """Neither momentum nor weight decay may move them."""
    watch, scales = Watch(), []

    class Scales(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            layer = next(iter(binary_layers(module).values()))
            scales.append((layer.scale.detach().clone(), module.model.model.norm.weight.detach().clone()))

    fit(tmp_path, binarization(measure=False), watch, Scales())
    weights = [weight for *_, weight in watch.seen]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(weights[:9]))
    assert all(torch.equal(weight, weights[8]) for weight in weights[9:])
    for part in (0, 1):
        assert not torch.equal(scales[8][part], scales[9][part])


def test_a_straight_through_tail_moves_them(tmp_path):
    watch = Watch()
    fit(tmp_path, binarization(PLAIN.derive(hard_tail="ste"), measure=False), watch)
    assert not torch.equal(watch.seen[8][3], watch.seen[9][3])


def test_scales_norms_and_biases_are_not_decayed(tmp_path):
    decayed = {}

    class Groups(lightning.Callback):
        def on_train_start(self, trainer, module):
            names = {id(parameter): name for name, parameter in module.named_parameters()}
            for group in trainer.optimizers[0].param_groups:
                decayed.update({names[id(parameter)]: group["weight_decay"] for parameter in group["params"]})

    fit(tmp_path, binarization(measure=False), Groups())
    assert any(name.endswith("q_proj.scale") for name in decayed)
    for name, decay in decayed.items():
        assert (decay == 0) == (name.endswith(".scale") or "norm" in name), name


@pytest.mark.parametrize("step", [4, 9])
def test_resume_in_the_middle_equals_the_uninterrupted_run(tmp_path, step):
    """At step 4 t is still rising, at step 9 the weights are binary and momentum of latent ones is kept."""
    saver, exact = Watch({step: tmp_path / "middle.ckpt"}), ExactResume.Config()
    whole, trainer = fit(tmp_path, binarization(), saver, exact.build(name="exact"))
    stored = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["config"]["structure"][0]["final"] is False
    module = CausalLM(**stored["hyper_parameters"])
    watch = Watch()
    resumed, again = fit(
        tmp_path, binarization(), watch, exact.build(name="exact"), module=module, ckpt_path=tmp_path / "middle.ckpt"
    )
    assert [(now, t, hard) for now, t, hard, _ in watch.seen] == [item[:3] for item in saver.seen[step:]]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert trainer.callbacks[0].record.state_dict() == again.callbacks[0].record.state_dict()


def test_the_last_checkpoint_is_final_and_a_finished_run_resumes_to_itself(tmp_path):
    run = recipe(val_check_interval=5)
    first = run.fit(tmp_path, quiet=True)
    loaded = CausalLM.load_from_checkpoint(first.checkpoint, weights_only=True)
    assert loaded.config.structure[0].final
    linears = binarized_linears(loaded.model, loaded.config.structure[0])
    assert sum(rows_with_other_values(linear) for linear in linears.values()) == 0
    again = fit_stage(run.stages[""], tmp_path, ckpt_path=first.checkpoint, quiet=True)
    assert again.metrics == first.metrics
    loaded.export(tmp_path / "export")
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    name = target_names(loaded.model, PLAIN)[0]
    assert torch.equal(plain.get_submodule(name).weight, linears[name].weight)


def test_measured_losses_and_the_report(tmp_path):
    result = recipe(PLAIN.derive(phase_origin=0)).fit(tmp_path, quiet=True)
    losses = json.loads((tmp_path / "binarize.json").read_text())["losses"]
    assert list(losses) == ["dense", "start", "sign", "trained", "binary"]
    assert losses["start"] == losses["dense"]  # t = 0: the same function bit for bit
    assert losses["sign"] != losses["dense"]
    # In the tail the weights are binary already; merging the scales rounds differently (1e-7 measured).
    assert losses["binary"] == pytest.approx(losses["trained"], abs=1e-5)
    assert result.metrics["test/loss"] == pytest.approx(losses["binary"], abs=1e-5)
    parts = {path.name for path in (tmp_path / "report_parts").iterdir()}
    assert {"binarize-1-losses.json", "binarize-2-sizes.json", "binarize-3-weights.png"} < parts
    row = json.loads((tmp_path / "report_parts/binarize-2-sizes.json").read_text())["rows"][0]
    assert row["binarized weights"] == (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"init": "learned", "init_steps": 30},
        {"init": "learned", "init_steps": 2, "input_scale": "per_linear"},
        {"init": "svid"},
        {"method": "onebit"},
        {"method": "lambda"},
        {"method": "bitnet_b1"},
    ],
)
def test_every_method_and_initialization_ends_binary(tmp_path, fields):
    module, trainer = fit(tmp_path, binarization(PLAIN.derive(**fields), measure=False), max_steps=3)
    linears = binarized_linears(module.model, module.config.structure[0])
    assert sum(rows_with_other_values(linear) for linear in linears.values()) == 0
    assert len(trainer.callbacks[0].record.init_losses) == (fields.get("init_steps", 0))
    present = {id(parameter) for parameter in module.parameters()}
    assert all(id(p) in present for group in trainer.optimizers[0].param_groups for p in group["params"])


def test_the_sign_alone_moves_no_weight(tmp_path):
    before = small_module().state_dict()
    module, _ = fit(tmp_path, binarization(PLAIN.derive(method="sign"), measure=False))
    name = target_names(module.model, PLAIN)[0]
    assert torch.equal(torch.sign(module.model.get_submodule(name).weight), torch.sign(before[f"model.{name}.weight"]))


def test_distillation_serves_all_methods(tmp_path):
    for method in ("progressive", "ste"):
        distill = Distillation.Config(method={"lambda_kd": 0.5, "lambda_ce": 0.5})
        run = recipe(PLAIN.derive(method=method), callbacks={"distill": distill}, max_steps=3)
        result = run.fit(tmp_path / method, quiet=True)
        assert math.isfinite(result.metrics["test/loss"])
        assert (tmp_path / method / "teacher" / "distill" / "config.json").is_file()


def test_training_that_ends_early_is_finalized_with_a_warning(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_: Any):
            trainer.should_stop = trainer.global_step == 6

    with pytest.warns(UserWarning, match="training ended at step 6 of the schedule"):
        module, _ = fit(tmp_path, binarization(measure=False), Stop())
    assert module.config.structure[0].final


def test_a_row_of_zeros_is_warned_about(tmp_path):
    module = small_module()
    with torch.no_grad():
        module.model.model.layers[0].mlp.up_proj.weight[3] = 0
    with pytest.warns(UserWarning, match=r"layers\.0\.mlp\.up_proj has a row of zeros"):
        module, _ = fit(tmp_path, binarization(measure=False), module=module, max_steps=2)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_schedule_longer_than_the_run_is_refused_in_setup(tmp_path):
    callback = binarization(PLAIN.derive(schedule_steps=30))
    with pytest.raises(ValueError, match=r"schedule_steps=30 .* do not fit into the 10 optimizer steps"):
        fit(tmp_path, callback)
    assert callback.record.losses == {}  # before anything was measured or replaced
    with pytest.raises(ValueError, match="number of training steps is unknown"):
        fit(tmp_path, binarization(), max_steps=-1, max_epochs=-1)


def test_another_schedule_than_the_interrupted_runs_is_refused(tmp_path):
    fit(tmp_path, binarization(measure=False), Watch({5: tmp_path / "middle.ckpt"}))
    stored = torch.load(tmp_path / "middle.ckpt", weights_only=True)["hyper_parameters"]
    for onebit, steps, message in (
        (PLAIN.derive(phases=10), 10, "phases=20 as one with phases=10"),
        (PLAIN.derive(schedule="linear"), 10, "schedule='paper' as one with schedule='linear'"),
        (PLAIN, 20, "total_steps=10 as one with total_steps=20"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(
                tmp_path,
                binarization(onebit, measure=False),
                module=CausalLM(**stored),
                ckpt_path=tmp_path / "middle.ckpt",
                max_steps=steps,
            )


def test_what_does_not_compose_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"averages of latent weights .* remove callback 'ema'"):
        fit(tmp_path, binarization(), WeightAverage.Config().build(name="ema"))
    with pytest.raises(ValueError, match="binarized once: remove callback 'second'"):
        fit(tmp_path, binarization(), binarization(name="second"))
    with pytest.raises(ValueError, match=r"precision='bf16-true' cannot take small steps.*bf16-mixed"):
        fit(tmp_path, binarization(), precision="bf16-true")
    adapted = small_module()
    adapted.restructure(LoRAPlan())
    with pytest.raises(ValueError, match=r"LoRA adapters; merge them first with merge_lora\(\)"):
        fit(tmp_path, binarization(), module=adapted)
    with pytest.raises(TypeError, match="needs a PanguModule"):
        fit(tmp_path, binarization(), module=BoringModel())
    with pytest.raises(ValueError, match="in bfloat16 cannot take small steps"):
        fit(tmp_path, binarization(), module=small_module().to(torch.bfloat16))


def test_flattened_shards_are_refused():
    trainer = SimpleNamespace(callbacks=[], strategy=object.__new__(FSDPStrategy), precision="32-true")
    with pytest.raises(ValueError, match=r"FSDPStrategy flattens parameters.*model_parallel"):
        binarization().setup(trainer, None, "fit")


def test_pruning_goes_before_and_not_after(tmp_path):
    method = SlimLLMConfig(base_share=0.5, pruned_layers=1, calibration={"num_samples": 4, "sequence_length": 12})
    prune = StructuredPruning.Config(method=method, progress_folder=None, measure=False)
    module, _ = fit(tmp_path, prune.build(name="prune"), binarization(measure=False), module=tiny_module(), max_steps=3)
    assert [plan.kind for plan in module.config.structure] == ["shape", "binarize"]
    with pytest.raises(ValueError, match=r"'binarize' and 'prune' .*would change binary layers: list .*'prune' before"):
        fit(tmp_path, binarization(measure=False), prune.build(name="prune"), module=tiny_module())


def test_a_plan_that_comes_later_is_refused(tmp_path):
    class Restructure(lightning.Callback):
        def setup(self, trainer, module, stage):
            module.restructure(Later())

    with pytest.raises(ValueError, match="plan 'later' would change binary layers; list this callback after"):
        fit(tmp_path, binarization(measure=False), Restructure())


def test_a_binary_model_is_not_trained_again(tmp_path):
    module, _ = fit(tmp_path, binarization(measure=False), max_steps=3)
    for name, message in (("binarize", "the model is binary already"), ("other", "already binarized by callback")):
        with pytest.raises(ValueError, match=message):
            fit(tmp_path, binarization(measure=False, name=name), module=CausalLM(**dict(module.hparams)), max_steps=3)
