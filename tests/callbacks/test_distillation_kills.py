"""A recipe with samples, scores and distillation, killed in each of these stages: the same bits, and nothing twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distilled import FIRST, distilled
from kills import Killed, KillSwitch

from pangu_modules import Recipe
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.store.shards import ShardStore

append = ShardStore.append
POINTS = {"the second part of samples": 2, "the first scores": 4, "the last scores": 6, "distilling": 7}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])


def recipe_in(folder: Path) -> Recipe:
    recipe = distilled(folder, steps=5)
    distill = recipe.stages["distill"].derive(callbacks={"switch": KillSwitch.Config()})
    return recipe.with_stages({**recipe.stages, "distill": distill})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["toy.py"])
        main(recipe_in(folder), ["fit"])
    return torch.load(folder / FIRST / "distill/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_recipe_goes_on(point: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would fail if scores were made anew, or in another order: three parts of samples, and three of scores."""
    written: list[str] = []

    def counted(store: ShardStore, table: Any, number: int, statistics: Any) -> Any:
        if len(written) + 1 == POINTS[point] and point != "distilling" and "killed" not in written:
            written.append("killed")
            raise Killed
        written.append(f"{store.kind} {number}")
        return append(store, table, number, statistics)

    monkeypatch.setattr(ShardStore, "append", counted)
    monkeypatch.setattr(KillSwitch, "moment", ("step", 3) if point == "distilling" else ("", 0))
    recipe = recipe_in(tmp_path)
    with pytest.raises(Killed):
        main(recipe, ["fit"])
    main(recipe, ["fit"])
    assert [name for name in written if name != "killed"] == [
        f"{kind} {number}" for kind in ("rollouts", "scores") for number in range(3)
    ]
    found = torch.load(FIRST / "distill/checkpoints/last.ckpt", weights_only=True)
    assert found["global_step"] == 5
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name
