"""What cannot be pruned, given on a recipe's command line: exit code 2 and one line that says what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module
from tiny_text import TokenBatches

from callbacks import PanguLightPruning, StructuredPruning
from pangu_modules import CalibrationConfig, CausalLM, PanguLightConfig, Recipe, SlimLLMConfig, TargetShape
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE

CALIBRATION = CalibrationConfig(num_samples=4, sequence_length=16, batch_size=4)
SLIM = StructuredPruning.Config(method=SlimLLMConfig(base_share=0.25, pruned_layers=2, calibration=CALIBRATION))
LIGHT = PanguLightPruning.Config(method=PanguLightConfig(target=TargetShape(hidden_size=24), calibration=CALIBRATION))
GPT2 = json.dumps({"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 128, "n_positions": 64})
OLMO = json.dumps(TINY_LLAMA)  # Llama's sizes, and norms without gains


def recipe(callback: StructuredPruning.Config | PanguLightPruning.Config) -> Recipe:
    return Recipe(
        module=CausalLM.Config(architecture="llama", model_args=TINY_LLAMA),
        data=TokenBatches.Config(),
        callbacks={"prune": callback},
        trainer={"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    )


def not_a_number(path: Path) -> None:
    """Save a model whose second layer gives NaN."""
    module = tiny_module()
    with torch.no_grad():
        module.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, path)


def pruned(path: Path) -> None:
    """Save a model that another callback has pruned."""
    result = recipe(LIGHT.derive(measure=False)).fit(path.parent / "run", quiet=True)
    result.checkpoint.rename(path)


METHOD = "--callbacks.prune.method"
START = ["--module.init_checkpoint", "start.ckpt"]
BOTH = [SLIM, LIGHT]
CASES: dict[str, tuple[list[StructuredPruning.Config | PanguLightPruning.Config], list[str], str]] = {
    "nothing left": (
        [SLIM],
        [f"{METHOD}.base_share", "1"],
        "method.base_share: Input should be less than 0.95, got '1'",
    ),
    "no layer left": (
        [LIGHT],
        [f"{METHOD}.target.num_hidden_layers", "0"],
        "method.target.num_hidden_layers: Input should be greater than 0, got '0'",
    ),
    "budget of nothing": (
        [LIGHT],
        [f"{METHOD}.target", "null", f"{METHOD}.target_params", "1e-5"],
        "target_params=1e-05 must be between the smallest shape's",
    ),
    "unknown sizes": (BOTH, ["--module.architecture", "gpt2", "--module.model_args", GPT2], "'gpt2'"),
    "unknown norms": (BOTH, ["--module.architecture", "olmo", "--module.model_args", OLMO], "'olmo'"),
    "text too short": (
        BOTH,
        [f"{METHOD}.calibration.sequence_length", "99"],
        "lower calibration.sequence_length or calibration.num_samples",
    ),
    "too little text": (
        BOTH,
        [f"{METHOD}.calibration.num_samples", "99"],
        "lower calibration.sequence_length or calibration.num_samples",
    ),
    "not finite, SlimLLM": ([SLIM], START, "layer 1: the output has NaN"),
    "not finite, Pangu Light": ([LIGHT], START, "activations of layers.1.mlp.down_proj are not finite"),
    "pruned before": (BOTH, START, "already pruned"),
}
STARTS: dict[str, Callable[[Path], None]] = {"not finite": not_a_number, "pruned before": pruned}
"""What makes the checkpoint to start from, by the case up to its comma."""


@pytest.mark.parametrize("case", CASES)
def test_is_answered_with_code_2_and_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    start = case.partition(",")[0]
    if start in STARTS:
        STARTS[start](tmp_path / "start.ckpt")
    callbacks, words, message = CASES[case]
    for callback in callbacks:
        monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
        name = "other" if case == "pruned before" else "prune"
        tried = recipe(callback).derive(callbacks={"prune": None, name: callback})
        with pytest.raises(SystemExit) as stopped:
            main(tried, ["fit", *words])
        assert stopped.value.code == 2
        line, hint = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert hint == "See: python tiny.py fit --help"
        assert not list(Path("runs").glob("*/*"))
