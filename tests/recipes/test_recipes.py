"""Every recipe runs: those on embedded data train a batch, those at paper scale are planned and counted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from pangu_modules import GenerateStage, Recipe, Stage
from pangu_modules.engine.catalogue import UNSTATED, catalogue
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE

ENTRIES = {entry.name: entry for entry in catalogue(Path(__file__).parents[2] / "recipes")}
PAPER_SCALE = [name for name, entry in ENTRIES.items() if entry.cost == "paper scale"]
EMBEDDED = [name for name in ENTRIES if name not in PAPER_SCALE]
# Of the recipes on the real LLM two stay in the fast tests; the others take minutes each.
SLOW = (
    *("drafter_smollm2", "dwm_smollm2", "generate_smollm2", "moge_upcycle_smollm2", "onebit_smollm2"),
    "posttrain_smollm2",
)
FAST = {"trainer.fast_dev_run": "true"}
SHORT = {"num_tasks": "1", "engine.max_new_tokens": "4"}  # of a stage that generates
# To train on samples there must be some beside those held out, and answers of a model that knows nothing do not end.
MORE = ["--generate.num_tasks", "8", "--distill.data.batch_size", "2", "--distill.data.filters.keep_truncated", "true"]
MORE_OF = {"posttrain_tiny": MORE, "posttrain_smollm2": MORE}
# Parameters of the 2x expansions: 12 d^2 + 13 d a block, 2 d r + r + d an adapter, 4 d the norms of an added block.
SCALENET = {"scalenet_deit_t": 6_031_528, "scalenet_deit_s": 22_678_120, "scalenet_deit_b": 89_002_216}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)


def load(name: str) -> Recipe:
    recipe: Recipe = importlib.import_module(f"recipes.{name}").recipe
    return recipe


def test_there_are_recipes_of_both_kinds() -> None:
    assert "scalenet_digits" in EMBEDDED
    assert len(PAPER_SCALE) >= 3


@pytest.mark.parametrize("name", ENTRIES)
def test_is_described_and_short(name: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    assert UNSTATED not in ENTRIES[name]
    assert len(ENTRIES[name].description) <= 120


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EMBEDDED]
)
def test_trains_a_batch(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    recipe = load(name)
    words, trains = [], False
    for stage, config in recipe.stages.items():
        short = FAST if isinstance(config, Stage) else SHORT if isinstance(config, GenerateStage) else {}
        trains |= isinstance(config, Stage)
        words += [
            word for option, value in short.items() for word in (f"--{stage}.{option}".replace("--.", "--"), value)
        ]
    main(recipe, ["fit", *words, *MORE_OF.get(name, [])])
    folder = Path("runs") / name / ("dry_run_0" if trains else "version_0")
    assert (folder / "report.html").is_file()
    assert "run folder" in capsys.readouterr().out


@pytest.mark.parametrize("name", ENTRIES)
def test_plan_needs_no_data(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    main(load(name), ["plan", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] >= figures["active_parameters"] > 0
    assert figures["forward_flops_per_sample"] > 0
    for quantity, expected in figures.get("reference", {}).items():
        assert figures[quantity] == expected, quantity


@pytest.mark.parametrize(("name", "parameters"), list(SCALENET.items()))
def test_scalenet_sizes(name: str, parameters: int, capsys: pytest.CaptureFixture[str]) -> None:
    main(load(name), ["plan", "--json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == parameters
