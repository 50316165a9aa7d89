"""Killed at every named moment and started again, a run leaves what the uninterrupted one leaves, bit for bit."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
from kills import MOMENTS, assert_same, killed, left_by
from toy_runs import STAGED, stage

from pangu_modules import Recipe
from pangu_modules.engine import trainer as engine_trainer
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import versions


@functools.cache
def single(schedule: str) -> Recipe:
    return Recipe(**{name: getattr(stage(schedule), name) for name in ("module", "data", "callbacks", "trainer")})


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(engine_trainer, "SAVE_EVERY", 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of uninterrupted runs, made when they are first asked for."""
    return {"": tmp_path_factory.mktemp("whole")}


def uninterrupted(recipe: Recipe, name: str, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    if name not in whole:
        here = Path.cwd()
        folder = whole[""] / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        main(recipe, ["fit"])
        monkeypatch.chdir(here)
        whole[name] = folder / "runs/toy/version_0"
    return whole[name]


def go_on(recipe: Recipe) -> None:
    """Start again as a user would: from the last checkpoint, or anew where there is none yet."""
    has_last = list(Path("runs").rglob("last.ckpt"))
    main(recipe, ["fit", *(["--ckpt_path", "last"] if has_last and recipe.single else [])])


def newest() -> Path:
    return versions("toy")[-1]


SOME = ["step inside an epoch", "later validation", "between best and last", "before last is renamed", "test"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_end(
    moment: str, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = single("epochs")
    reference = uninterrupted(recipe, "epochs", whole, monkeypatch)
    with killed(MOMENTS[moment]):
        main(recipe, ["fit"])
    go_on(recipe)
    assert_same(left_by(newest()), left_by(reference))


@pytest.mark.parametrize("schedule", ["steps", "validations inside epochs", "accumulation"])
@pytest.mark.parametrize("moment", SOME)
def test_other_schedules(moment: str, schedule: str, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = single(schedule)
    reference = uninterrupted(recipe, schedule, whole, monkeypatch)
    with killed(MOMENTS[moment]):
        main(recipe, ["fit"])
    go_on(recipe)
    assert_same(left_by(newest()), left_by(reference))


def test_a_run_killed_three_times(whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = single("epochs")
    reference = uninterrupted(recipe, "epochs", whole, monkeypatch)
    with killed(("step", 12)):
        main(recipe, ["fit"])
    for moment in (("step", 3), ("validation", 1)):
        with killed(moment):
            go_on(recipe)
    go_on(recipe)
    assert len(versions("toy")) == 1
    assert_same(left_by(newest()), left_by(reference))


@pytest.mark.parametrize("moment", [("setup test", 1), ("setup fit", 2), ("validation", 7), ("test", 3)])
def test_a_pipeline_goes_on_in_the_stage_it_was_killed_in(
    moment: tuple[str, int], whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = uninterrupted(STAGED, "staged", whole, monkeypatch)
    with killed(moment):
        main(STAGED, ["fit"])
    go_on(STAGED)
    assert len(versions("toy")) == 1
    for name in STAGED.stages:
        assert_same(left_by(newest() / name), left_by(reference / name))
