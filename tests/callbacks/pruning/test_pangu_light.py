"""PanguLightPruning in a Trainer: the target shape, recovery by distillation, resuming, the report and the export."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from tiny_llm import TINY_LLAMA, tiny_module, token_batch
from tiny_text import TokenBatches

from callbacks import Distillation, PanguLightPruning, PostNormAbsorption
from pangu_modules import (
    AbsorbConfig,
    AbsorbPlan,
    CalibrationConfig,
    CausalLM,
    OptimizerConfig,
    PanguLightConfig,
    Recipe,
    ShapePlan,
    TargetShape,
    absorb_post_norms,
)
from pangu_modules.engine.run import fit_stage
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.pangu_light.pipeline import prune_pangu_light

TARGET = TargetShape(num_hidden_layers=3, hidden_size=24, intermediate_size=40)
METHOD = PanguLightConfig(target=TARGET, calibration=CalibrationConfig(num_samples=4, sequence_length=16, batch_size=4))


def recipe(max_steps=4):
    return Recipe(
        module=CausalLM.Config(
            architecture="llama",
            model_args={**TINY_LLAMA, "num_hidden_layers": 4},
            optimizer=OptimizerConfig(lr=1e-2, schedule="constant", warmup_share=0),
        ),
        data=TokenBatches.Config(),
        callbacks={"distill": Distillation.Config(), "prune": PanguLightPruning.Config(method=METHOD)},
        trainer={"max_steps": max_steps, "accelerator": "cpu", "limit_val_batches": 0, "logger": False},
    )


def table(folder, name):
    return json.loads((folder / "report_parts" / f"prune-{name}.json").read_text())["rows"]


def test_an_interrupted_run_equals_the_whole_one(tmp_path):
    whole = recipe().fit(tmp_path / "whole", quiet=True)
    (stage,) = recipe(max_steps=2).stages.values()
    interrupted = fit_stage(stage, tmp_path / "run", quiet=True)
    (stage,) = recipe().stages.values()
    resumed = fit_stage(stage, tmp_path / "run", ckpt_path=interrupted.checkpoint, quiet=True)
    states = [torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert whole.metrics == resumed.metrics
    assert states[1]["hyper_parameters"]["config"]["structure"][0]["kind"] == "shape"


def test_the_model_has_the_target_shape_and_exports_as_a_plain_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    result = recipe().fit(tmp_path / "run", quiet=True)
    module = CausalLM.load_from_checkpoint(result.checkpoint, weights_only=True)
    assert decoder.hidden_size(module.model) == 24
    assert [decoder.layer_shape(layer).intermediate_size for layer in decoder.decoder_layers(module.model)] == [40] * 3
    module.export(tmp_path / "folder")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    tokens = token_batch()["input_ids"]
    with torch.no_grad():
        # measured 0: the same operations on the same weights
        assert torch.equal(plain(tokens).logits, module.model.eval()(tokens).logits)


def test_the_report_tells_what_each_part_did(tmp_path):
    recipe().fit(tmp_path, quiet=True)
    perplexities = {row["model"]: row["perplexity"] for row in table(tmp_path, "1-perplexity")}
    assert list(perplexities) == ["before pruning", "pruned", "after recovery"]
    parts = {row["start"]: row["perplexity"] for row in table(tmp_path, "5-parts")}
    assert list(parts) == ["dense", "plain", "clap", "slnp", "clap+slnp"]
    assert parts["dense"] == pytest.approx(perplexities["before pruning"])
    assert parts["clap+slnp"] == pytest.approx(perplexities["pruned"])  # what the configuration asks for
    layers = table(tmp_path, "3-layers")
    assert {*layers[0]} == {"layer", "similarity", "requested share", "query heads", "FFN channels", "adopted heads"}
    for row in layers:  # what a layer lost of its own heads, CLAP gave it from the dropped one
        assert int(row["query heads"].split(" of ")[0]) + (row["adopted heads"] or 0) == 4
    sizes = {row["size"]: (row["before"], row["after"]) for row in table(tmp_path, "2-sizes")}
    assert (sizes["hidden size"], sizes["num hidden layers"]) == ((32, 24), (4, 3))
    (dropped,) = table(tmp_path, "3-dropped")
    assert {dropped["layer"], *(row["layer"] for row in layers)} == {0, 1, 2, 3}


SANDWICH = {**TINY_LLAMA, "num_hidden_layers": 3, "tie_word_embeddings": False}


def sandwich_recipe(callbacks, max_steps=2):
    return Recipe(
        module=CausalLM.Config(
            architecture="sandwich_llama",
            model_args=SANDWICH,
            optimizer=OptimizerConfig(lr=1e-3, schedule="constant", warmup_share=0),
        ),
        data=TokenBatches.Config(),
        callbacks=callbacks,
        trainer={"max_steps": max_steps, "accelerator": "cpu", "limit_val_batches": 0, "logger": False},
    )


def absorption(**fields):
    return {
        "absorb": PostNormAbsorption.Config(method=AbsorbConfig(enabled=True, **fields), calibration=METHOD.calibration)
    }


def test_a_pruned_sandwich_is_absorbed_before_recovery_and_loads_as_a_llama(tmp_path):
    method = METHOD.derive(target=TargetShape(hidden_size=24), absorb=AbsorbConfig(enabled=True))
    result = sandwich_recipe({"prune": PanguLightPruning.Config(method=method)}).fit(tmp_path / "run", quiet=True)
    module = CausalLM.load_from_checkpoint(result.checkpoint, weights_only=True)
    assert [plan.kind for plan in module.config.structure] == ["shape", "absorb"]
    assert module.model.config.model_type in ("llama", "mistral")
    late = sandwich_recipe({"prune": PanguLightPruning.Config(method=method.derive(absorb={"order": "at_end"}))})
    with pytest.raises(ValueError, match="PostNormAbsorption in a last stage"):
        late.fit(tmp_path / "late", quiet=True)


@pytest.mark.parametrize("layout", ["auto", "padded", "per_layer"])
def test_a_pruned_sandwich_with_its_post_norms_is_not_exported(layout, tmp_path):
    module = sandwich_recipe({}).stages[""].module.build()
    prune_pangu_light(module.model, METHOD.derive(target=TargetShape(hidden_size=24)), [token_batch()])
    module.restructure(ShapePlan.of(module.model, layout=layout))
    for kind in ("transformers", "gguf"):
        with pytest.raises(ValueError, match=r"'sandwich_llama'; absorb its post-norms .*method.absorb.enabled true"):
            module.export(tmp_path / "folder", kind)
    assert not (tmp_path / "folder").exists()
    batches = [token_batch(seed=1)]
    module.model, _ = absorb_post_norms(module.model, batches)
    module.restructure(AbsorbPlan())
    module.export(tmp_path / "folder")
    assert (tmp_path / "folder" / "config.json").is_file()


def test_absorption_goes_on_after_an_interruption_and_is_checked_at_the_end(tmp_path):
    recipes = [sandwich_recipe(absorption(max_ppl_increase=9.0), max_steps=steps) for steps in (4, 2)]
    whole = recipes[0].fit(tmp_path / "whole", quiet=True)
    (long,), (short,) = (recipe.stages.values() for recipe in recipes)
    interrupted = fit_stage(short, tmp_path / "run", quiet=True)
    resumed = fit_stage(long, tmp_path / "run", ckpt_path=interrupted.checkpoint, quiet=True)
    states = [torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed)]
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
    with pytest.raises(ValueError, match="absorption raised the perplexity"):
        sandwich_recipe(absorption(max_ppl_increase=1e-9), max_steps=1).fit(tmp_path / "strict", quiet=True)


def test_bad_values_are_named():
    with pytest.raises(ValidationError, match="exactly one of target"):
        PanguLightPruning.Config(method={})
    config = PanguLightPruning.Config(method=METHOD)
    assert PanguLightPruning.Config.model_validate(config.plain()) == config
    assert tiny_module().config.structure == ()
