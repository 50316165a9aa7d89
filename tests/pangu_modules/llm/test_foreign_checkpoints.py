"""A checkpoint from anybody runs no code, opens no place and writes nowhere but where the caller says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module, token_batch, word_tokenizer
from toys import ToyData

from pangu_modules import CausalLM, ImageClassifier, Recipe
from pangu_modules.common import registry
from pangu_modules.common.config import Config, _config_of
from pangu_modules.engine.cli import main
from pangu_modules.training.module import PanguModule
from pangu_modules.vision.scalenet.classifier import ScaleNetClassifier

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddModel(LlamaForCausalLM):
    config_class = OddConfig
"""


def checkpoint_of(module: PanguModule, path: Path, **config: Any) -> Path:
    stored = {**module.hparams, "config": {**module.hparams["config"], **config}}
    state = {"state_dict": module.state_dict(), "hyper_parameters": stored, "pytorch-lightning_version": "2.6.6"}
    torch.save(state, path)
    return path


def with_runtime(path: Path, **runtime: Any) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= runtime
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def evil_model(tmp_path: Path) -> Path:
    """A model folder whose Python code leaves a mark when it runs."""
    folder = tmp_path / "evil"
    tiny_module().model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return folder


def test_code_that_a_checkpoint_names_does_not_run(evil_model: Path, tmp_path: Path) -> None:
    path = checkpoint_of(
        tiny_module(),
        tmp_path / "x.ckpt",
        model=str(evil_model),
        architecture=None,
        model_args={},
        trust_remote_code=True,
    )
    called = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "x"}
    with_runtime(path, trust_remote_code=True, **called)
    with pytest.raises(ValueError, match=r"Python code at .*evil.* trust_remote_code=True"):
        CausalLM.load_from_checkpoint(path, weights_only=True)
    assert not (tmp_path / "ran").exists()
    module = CausalLM.load_from_checkpoint(path, weights_only=True, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert type(module.model).__name__ == "OddModel"


def test_the_command_line_does_not_run_it_either(
    evil_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fields = {"model": str(evil_model), "architecture": None, "model_args": {}, "trust_remote_code": True}
    path = checkpoint_of(tiny_module(), tmp_path / "x.ckpt", **fields)
    module = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA)
    recipe = Recipe(module=module, data=ToyData.Config(), trainer={"accelerator": "cpu"})
    for command in ("fit", "test", "export"):
        with pytest.raises(SystemExit) as caught:
            main(recipe, [command, "--ckpt_path", str(path)])
        assert caught.value.code == 2
        assert "--module.trust_remote_code true" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_an_honest_checkpoint_keeps_what_it_computes_and_drops_places(tmp_path: Path) -> None:
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "words")).eval()
    places = {"assistant": "a/b", "base_url": None, "api_key_variable": "HOME", "top_k": 5}
    fields = {"tokenizer": "/nowhere", "init_checkpoint": "/nowhere", "generation": places}
    path = checkpoint_of(module, tmp_path / "x.ckpt", **fields)
    loaded = CausalLM.load_from_checkpoint(path, weights_only=True).eval()
    torch.testing.assert_close(
        loaded.compute_outputs(token_batch())["logits"], module.compute_outputs(token_batch())["logits"], rtol=0, atol=0
    )
    assert loaded.tokenizer("w1 w2")["input_ids"] == module.tokenizer("w1 w2")["input_ids"]
    assert (loaded.config.tokenizer, loaded.config.init_checkpoint) == (None, None)
    generation = loaded.config.generation
    assert (generation.assistant, generation.api_key_variable, generation.top_k) == (None, None, 5)


def test_a_checkpoint_names_no_tokenizer_and_no_hub_kernel(tmp_path: Path) -> None:
    path = with_runtime(checkpoint_of(tiny_module(), tmp_path / "x.ckpt"), tokenizer="/nowhere")
    assert CausalLM.load_from_checkpoint(path, weights_only=True).tokenizer is None
    path = checkpoint_of(tiny_module(), tmp_path / "y.ckpt", attn_implementation="owner/kernel")
    with pytest.raises(ValueError, match="only the caller"):
        CausalLM.load_from_checkpoint(path, weights_only=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../x", "no path"),
        ("/tmp/x", "no path"),
        ("..\\x", "no path"),
        ("a\0b", "no path"),
        ("config.json", "the model's own"),
        ("model.safetensors", "the model's own"),
        ("tokenization_x.py", "Python code"),
    ],
)
def test_text_files_keep_to_their_names(name: str, said: str, tmp_path: Path) -> None:
    path = with_runtime(checkpoint_of(tiny_module(), tmp_path / "x.ckpt"), files={name: "{}"})
    with pytest.raises(ValueError, match=said):
        CausalLM.load_from_checkpoint(path, weights_only=True)


def test_a_tokenizers_settings_name_no_code_and_no_files(tmp_path: Path) -> None:
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "words"))
    files = dict(module.runtime["files"])
    settings = json.loads(files["tokenizer_config.json"])
    odd = {"auto_map": {"AutoTokenizer": ["evil/repo--x.Odd", None]}, "vocab_file": "/etc/passwd"}
    files["tokenizer_config.json"] = json.dumps({**settings, **odd})
    path = with_runtime(checkpoint_of(module, tmp_path / "x.ckpt"), files=files)
    loaded = CausalLM.load_from_checkpoint(path, weights_only=True)
    assert loaded.tokenizer("w1")["input_ids"] == [6]
    loaded.export(tmp_path / "out")
    assert not {"auto_map", "vocab_file"} & {*json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())}


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    module = tiny_module()
    module.export(tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    for kind in ("transformers", "gguf"):
        with pytest.raises(FileExistsError, match="nothing is overwritten"):
            module.export(tmp_path / "out", kind)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_a_shard_lies_in_its_folder(tmp_path: Path) -> None:
    tiny_module().model.save_pretrained(tmp_path)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model.safetensors.index.json holds a file named '../../model"):
        CausalLM.Config(model=str(tmp_path)).build()


def test_image_models_open_nothing_either(tmp_path: Path) -> None:
    config = {"backbone": "vit_tiny_patch16_224", "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 8}}
    config["model_args"] |= {"depth": 1, "num_heads": 2}
    stored = {"config": {**config, "pretrained": str(tmp_path / "x.pth")}, "num_classes": 2}
    assert ImageClassifier.from_stored(stored).config.pretrained is False
    stored["config"]["backbone"] = "hf-hub:evil/model"
    with pytest.raises(ValueError, match="only the caller"):
        ImageClassifier.from_stored(stored)
    stored["config"] = {**config, "model_args": {**config["model_args"], "checkpoint_path": str(tmp_path / "x.pth")}}
    with pytest.raises(ValueError, match="name a file of weights in pretrained"):
        ImageClassifier.from_stored(stored)


HARMLESS = {
    "architecture": "a model type that transformers or this library registers",
    "backbone": "checked: a plain name",
    "attn_implementation": "checked: a plain name",
    "kind": "a plan that this library registers",
    "source": "a callback's name",
    "targets": "names of submodules",
    "exclude": "names of submodules",
    "device": "a device",
    "stop": "texts that end a completion",
}
"""Fields of text that a checkpoint may bring, and why."""


CONFIGS = [owner.Config for owner in (CausalLM, ImageClassifier, ScaleNetClassifier)]
PLANS = [registry.load("plan", kind) for kind in registry.names("plan")]


@pytest.mark.parametrize("stored", [*CONFIGS, *PLANS])
def test_every_field_of_text_is_the_callers_or_harmless(stored: type[Config]) -> None:
    """A field added later that names a place must say so."""

    def texts(config: type[Config]) -> list[str]:
        found = []
        for name, field in config.model_fields.items():
            inner = _config_of(field.annotation)
            marked = isinstance(field.json_schema_extra, dict) and "caller_only" in field.json_schema_extra
            if inner is not None:
                found += texts(inner)
            elif re.search(r"\bstr\b", str(field.annotation)) and "Literal" not in str(field.annotation) and not marked:
                found.append(name)
        return found

    assert set(texts(stored)) <= {*HARMLESS, "model_args"}
