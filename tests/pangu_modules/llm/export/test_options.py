"""The type and the layout of an export: by default those the model came with, and others where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import slimllm
from safetensors.torch import load_file
from tiny_llm import tiny_module, token_batch
from transformers import AutoModelForCausalLM

from pangu_modules import ShapePlan
from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.options import ExportOptions


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return the folder of a model in bfloat16."""
    model: Any = tiny_module().model
    model.bfloat16().save_pretrained(tmp_path / "stored")
    return tmp_path / "stored"


def types(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def test_a_model_trains_in_float32_and_leaves_in_the_type_it_came_in(stored: Path, tmp_path: Path) -> None:
    module = CausalLM.Config(model=str(stored)).build()
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    module.export(tmp_path / "out")
    assert types(tmp_path / "out") == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    before, after = (load_file(folder / "model.safetensors") for folder in (stored, tmp_path / "out"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    module.export(tmp_path / "wide", dtype="float32")
    assert types(tmp_path / "wide") == {torch.float32}


def test_a_checkpoint_remembers_the_type(stored: Path, tmp_path: Path) -> None:
    import lightning
    from tiny_text import TokenBatches

    module = CausalLM.Config(model=str(stored)).build()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=TokenBatches.Config().build())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CausalLM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, map_location="cpu")
    again.export(tmp_path / "out")
    assert types(tmp_path / "out") == {torch.bfloat16}


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    module = tiny_module()
    with torch.no_grad():
        module.model.model.norm.weight[0] = 1e5
    with pytest.raises(ValueError, match=r"model.norm.weight holds numbers beyond the range of torch.float16"):
        module.export(tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"dtype": "int8"}, {"layout": "auto"}])
def test_unknown_choices_are_named(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is unknown; choose"):
        ExportOptions(**fields)


# Layouts of a pruned model.


def pruned(**config: Any) -> CausalLM:
    module = tiny_module(model_args={"num_hidden_layers": 4, "tie_word_embeddings": False})
    kept = slimllm(module.model, token_batch(seq=24), **config)
    module.restructure(ShapePlan.of(module.model, kept, source="x", layout="per_layer"))
    return module.eval()


@pytest.mark.parametrize(
    ("layout", "kind"), [(None, "pruned_llama"), ("per_layer", "pruned_llama"), ("padded", "llama")]
)
def test_the_layout_is_chosen_when_exporting(layout: str | None, kind: str, tmp_path: Path) -> None:
    module = pruned()
    module.export(tmp_path / "out", layout=layout)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=kind != "llama").eval()
    batch = token_batch()
    torch.testing.assert_close(again(**batch).logits, module.model(**batch).logits, rtol=0, atol=1e-5)
    assert module.config.structure[-1].plain()["layout"] == "per_layer"  # the plan itself stays


def test_uniform_needs_equal_layers_and_says_which_layouts_do_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'uniform' needs layers of equal sizes.*'padded' or 'per_layer'"):
        pruned().export(tmp_path / "out", layout="uniform")
    module = pruned(alpha=0, pruned_layers=4)
    module.export(tmp_path / "out", layout="uniform")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = token_batch()
    torch.testing.assert_close(again(**batch).logits, module.model(**batch).logits, rtol=0, atol=1e-5)


def test_a_model_that_was_not_pruned_has_one_layout(tmp_path: Path) -> None:
    module = tiny_module()
    module.export(tmp_path / "out", layout="uniform")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(ValueError, match="layout='per_layer' is one of a pruned model's, and this one was not pruned"):
        module.export(tmp_path / "other", layout="per_layer")
