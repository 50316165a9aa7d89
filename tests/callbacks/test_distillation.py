"""Distillation in a Trainer: the objective, the teacher before pruning, resuming, and what it refuses."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from pydantic import ValidationError
from tiny_llm import TINY_LLAMA, tiny_module, token_batch
from tiny_text import TokenBatches

from callbacks import StructuredPruning
from callbacks.distillation import Distillation
from pangu_modules import CausalLM, OptimizerConfig, Recipe
from pangu_modules.engine.run import fit_stage
from pangu_modules.llm.calibration.windows import CalibrationConfig
from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
from pangu_modules.training.fingerprint import fingerprint

PRUNE = StructuredPruning.Config(
    method=SlimLLMConfig(
        base_share=0.5, pruned_layers=1, calibration=CalibrationConfig(num_samples=4, sequence_length=16, batch_size=4)
    ),
    progress_folder=None,
)


def fit(module, tmp_path, *callbacks):
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    return trainer


def distillation(**fields):
    own = {name: fields.pop(name) for name in ("teacher", "device") if name in fields}
    return Distillation.Config(method=fields, **own).build(name="distill")


def recipe(max_steps=4):
    return Recipe(
        module=CausalLM.Config(
            architecture="llama",
            model_args=TINY_LLAMA,
            optimizer=OptimizerConfig(lr=1e-2, schedule="constant", warmup_share=0),
        ),
        data=TokenBatches.Config(),
        callbacks={"distill": Distillation.Config(), "prune": PRUNE},
        trainer={"max_steps": max_steps, "accelerator": "cpu", "limit_val_batches": 0, "logger": False},
    )


def test_the_objective_is_the_divergence_from_the_unpruned_model(tmp_path):
    module, before = tiny_module(), tiny_module()
    fit(module, tmp_path, distillation(temperature=2.0, lambda_ce=0.5, lambda_kd=3.0), PRUNE.build(name="prune"))
    assert {name: objective.weight for name, objective in module.objectives.items()} == {
        "language_modelling": 0.5,
        "distill": 3.0,
    }
    batch = token_batch()
    with torch.no_grad():
        outputs = module.compute_outputs(batch)
        teacher = before.model(batch["input_ids"]).logits[:, :-1].double()
        student = outputs["logits"][:, :-1].double()
        loss = module.objectives["distill"].loss(module, batch, outputs)
    p, q = (logits.div(2).softmax(-1) for logits in (teacher, student))
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean(-1)
    # float32 logits and sums against float64: 1e-6 measured on losses of 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert module.model.config.layer_shapes  # the student is pruned, the teacher is not


def test_the_teacher_is_frozen_and_in_no_checkpoint(tmp_path):
    module = tiny_module()
    callback = distillation()
    trainer = fit(module, tmp_path, callback)
    assert list(module.objectives) == ["distill"]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert len(state) == len(tiny_module().state_dict())
    assert fingerprint(module.model) != fingerprint(tiny_module().model)  # trained
    assert callback.state_dict() == {"teacher": fingerprint(tiny_module().model)}


def test_a_teacher_by_name_is_loaded_and_nothing_is_stored(tmp_path):
    tiny_module(seed=3).export(tmp_path / "other")
    callback = distillation(teacher=str(tmp_path / "other"))
    fit(tiny_module(), tmp_path / "run", callback)
    assert callback.state_dict() == {"teacher": fingerprint(tiny_module(seed=3).model)}
    assert not (tmp_path / "run").exists()


def test_no_teacher_is_loaded_without_weight(tmp_path):
    module = tiny_module()
    fit(module, tmp_path, distillation(lambda_kd=0, lambda_ce=2.0, teacher="/nothing/here"))
    assert {name: objective.weight for name, objective in module.objectives.items()} == {"language_modelling": 2.0}


def test_an_interrupted_run_goes_on_with_the_same_teacher(tmp_path):
    whole = recipe().fit(tmp_path / "whole", quiet=True)
    (stage,) = recipe(max_steps=2).stages.values()
    interrupted = fit_stage(stage, tmp_path / "run", quiet=True)
    (stage,) = recipe().stages.values()
    resumed = fit_stage(stage, tmp_path / "run", ckpt_path=interrupted.checkpoint, quiet=True)
    states = [torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed)]
    assert [state["global_step"] for state in states] == [4, 4]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert whole.metrics == resumed.metrics


def test_another_teacher_than_the_interrupted_runs_is_refused(tmp_path):
    (stage,) = recipe(max_steps=2).stages.values()
    first = fit_stage(stage, tmp_path / "run", quiet=True)
    tiny_module(seed=3).export(tmp_path / "other")
    changed = stage.derive(callbacks={"distill": {"teacher": str(tmp_path / "other")}}, trainer={"max_steps": 4})
    with pytest.raises(ValueError, match="is not that of the interrupted run"):
        fit_stage(changed, tmp_path / "run", ckpt_path=first.checkpoint, quiet=True)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="put this callback before the one that prunes"):
        fit(tiny_module(), tmp_path, PRUNE.build(name="prune"), distillation())
    fit(tiny_module(), tmp_path / "used", distillation())
    with pytest.raises(ValueError, match="is from an earlier run; give the run a folder of its own"):
        fit(tiny_module(seed=1), tmp_path / "used", distillation())
    tiny_module(model_args={"vocab_size": 64}).export(tmp_path / "small")
    with pytest.raises(ValueError, match="vocabulary of 64, the model of 128"):
        fit(tiny_module(), tmp_path, distillation(teacher=str(tmp_path / "small")))
    with pytest.raises(TypeError, match="needs a PanguModule"):
        fit(BoringModel(), tmp_path, distillation())
    with pytest.raises(ValidationError, match="both 0: nothing would be learned"):
        Distillation.Config(method={"lambda_kd": 0})
