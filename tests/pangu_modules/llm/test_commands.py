"""Commands on a language model's checkpoint: what the command line may still change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_llm import TINY_LLAMA
from tiny_text import TokenBatches

from pangu_modules import CausalLM, Recipe
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Return a recipe that has been run for one step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    trainer = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}
    recipe = Recipe(
        module=CausalLM.Config(architecture="llama", model_args=TINY_LLAMA), data=TokenBatches.Config(), trainer=trainer
    )
    main(recipe, ["fit"])
    return recipe


def test_generation_follows_the_command_line_and_shapes_the_checkpoint(recipe: Recipe) -> None:
    words = ["--module.generation.max_new_tokens", "5", "--module.attn_implementation", "eager"]
    with pytest.raises(SystemExit, match="2"):  # the checkpoint has 32
        main(recipe, ["predict", *words, "--module.model_args", '{"hidden_size": 64}'])
    main(recipe, ["predict", *words])
    predictions = torch.load("runs/tiny/version_0/predictions.pt", weights_only=True)
    assert {len(written["token_ids"]) for batch in predictions for written in batch} == {5}
    main(recipe, ["predict", "--module.generation.max_new_tokens", "2", "--output", "two.pt"])
    shorter = torch.load("two.pt", weights_only=True)
    assert [w["token_ids"] for b in shorter for w in b] == [w["token_ids"][:2] for b in predictions for w in b]


def test_free_fields_exist_and_do_not_change_the_model(recipe: Recipe) -> None:
    assert set(CausalLM.free_fields) <= set(CausalLM.Config.model_fields)
    plain, other = CausalLM.Config(architecture="llama", model_args=TINY_LLAMA), {"attn_implementation": "eager"}
    changed = plain.derive(
        gradient_checkpointing=True, generation={"temperature": 1.0}, trust_remote_code=True, **other
    )
    differing = [name for name, value in plain.plain().items() if changed.plain()[name] != value]
    assert sorted(differing) == sorted(CausalLM.free_fields)  # each is tried here
    state = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    loaded = changed.build()
    loaded.load_state_dict(state)  # strict: every name and shape


def test_the_export_s_type_is_chosen_on_the_command_line(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    main(recipe, ["export", "--output", "plain"])
    main(recipe, ["export", "--output", "half", "--dtype", "bfloat16"])
    plain, half = (load_file(f"{name}/model.safetensors") for name in ("plain", "half"))
    assert {tensor.dtype for tensor in plain.values()} == {torch.float32}
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in plain.items())
    for words, message in (
        (["--dtype", "float8"], "dtype='float8' is unknown; choose float32, float16, bfloat16"),
        (["--layout", "wide"], "layout='wide' is unknown; choose uniform, padded, per_layer"),
        (["--layout", "padded"], "layout='padded' is one of a pruned model's, and this one was not pruned"),
        (["--format", "gguf_q8_0", "--dtype", "float16"], "format 'gguf_q8_0' takes no dtype"),
        (["--format", "gguf", "--layout", "padded"], "format 'gguf' takes no layout"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(recipe, ["export", "--output", "wrong", *words])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        assert not Path("wrong").exists()
