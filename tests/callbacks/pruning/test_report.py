"""What pruning leaves for the report: perplexities of every stage, costs, layers and the map."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module, token_batch
from tiny_text import TokenBatches

from callbacks import StructuredPruning
from callbacks.pruning.report import unrepaired
from pangu_modules import CalibrationConfig, CausalLM, OptimizerConfig, Recipe, SlimLLMConfig
from pangu_modules.engine.run import fit_stage
from pangu_modules.llm.models import decoder
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

CALIBRATION = CalibrationConfig(num_samples=4, sequence_length=16, batch_size=4)
METHOD = SlimLLMConfig(base_share=0.5, pruned_layers=1, calibration=CALIBRATION)


def recipe(max_steps=2, **fields):
    return Recipe(
        module=CausalLM.Config(
            architecture="llama",
            model_args=TINY_LLAMA,
            optimizer=OptimizerConfig(lr=1e-2, schedule="constant", warmup_share=0),
        ),
        data=TokenBatches.Config(),
        callbacks={"prune": StructuredPruning.Config(method=METHOD, progress_folder=None, **fields)},
        trainer={"max_steps": max_steps, "accelerator": "cpu", "limit_val_batches": 0, "logger": False},
    )


def record(folder):
    return json.loads((folder / "prune-perplexities.json").read_text())


def table(folder, name):
    return json.loads((folder / "report_parts" / f"prune-{name}.json").read_text())["rows"]


def test_every_stage_has_its_perplexity_also_after_a_resume(tmp_path):
    (stage,) = recipe(max_steps=1).stages.values()
    first = fit_stage(stage, tmp_path, quiet=True)
    rows = table(tmp_path, "1-perplexity")
    assert [row["model"] for row in rows] == ["before pruning", "pruned, not repaired", "pruned", "after recovery"]
    assert rows[-1]["perplexity"] == pytest.approx(first.metrics["test/perplexity"])
    assert list(record(tmp_path).items()) == list(
        zip(("before", "unrepaired", "pruned", "recovered"), (row["perplexity"] for row in rows), strict=True)
    )
    (stage,) = recipe(max_steps=3).stages.values()
    resumed = fit_stage(stage, tmp_path, ckpt_path=first.checkpoint, quiet=True)
    after = table(tmp_path, "1-perplexity")
    assert after[:-1] == rows[:-1]
    assert after[-1]["perplexity"] == pytest.approx(resumed.metrics["test/perplexity"])
    assert after[-1]["perplexity"] != rows[-1]["perplexity"]


def test_costs_and_layers_are_those_of_the_model(tmp_path):
    result = recipe().fit(tmp_path, quiet=True)
    before, after = table(tmp_path, "2-cost")
    assert before["parameters"] == sum(parameter.numel() for parameter in tiny_module().model.parameters())
    assert after["parameters"] == result.parameters < before["parameters"]
    assert 0 < after["flops_per_token"] < before["flops_per_token"]
    assert after["tokens_per_second"] > 0
    layers = table(tmp_path, "3-layers")
    assert sorted(row["query heads"] for row in layers) == ["2 of 4", "4 of 4"]
    assert sorted(row["FFN channels"] for row in layers) == ["32 of 64", "64 of 64"]
    assert (tmp_path / "report_parts" / "prune-4-map.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_measured_where_it_is_not_wanted(tmp_path):
    recipe(measure=False).fit(tmp_path, quiet=True)
    assert not (tmp_path / "report_parts").exists()


def test_undoing_the_repair_gives_the_model_that_was_only_cut():
    batches = [token_batch(4, 16, seed=7)]
    module, cut = tiny_module(), tiny_module()
    report = prune_slimllm(module.model, METHOD, batches)
    state = {name: value.clone() for name, value in module.model.state_dict().items()}
    for entry, layer in zip(report.layers, decoder.decoder_layers(cut.model), strict=True):
        surgery.keep_kv_groups(layer, sorted({head // 2 for head in entry.kept_heads}))
        surgery.keep_channels(layer, entry.kept_channels)
    with unrepaired(module.model, tiny_module().model, report) as repaired:
        assert repaired
        inside = perplexity(module.model, batches)
    # the same weights, and a bias of zero added: measured 0
    assert inside == pytest.approx(perplexity(cut.model, batches), rel=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in module.model.state_dict().items())


def test_a_model_without_repair_has_none_to_undo():
    module = tiny_module()
    report = prune_slimllm(module.model, METHOD.derive(recovery="none"), [token_batch(4, 16, seed=7)])
    with unrepaired(module.model, tiny_module().model, report) as repaired:
        assert not repaired
