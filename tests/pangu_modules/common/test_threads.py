"""Waiting threads: set before torch is loaded where a recipe runs, never in other people's projects."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import pangu_modules
from pangu_modules.common.threads import running_a_recipe, spin_briefly

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone after it
        monkeypatch.delenv(name)


def run_as(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "5"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_recipe_sets_it_with_the_first_name_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(ROOT / "recipes" / "scalenet_digits.py", monkeypatch)
    assert running_a_recipe()
    pangu_modules.__getattr__("Stage")
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_other_scripts_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for script in (tmp_path / "recipes" / "scalenet_digits.py", ROOT / "benchmarks" / "claims.py"):
        run_as(script, monkeypatch)
        assert not running_a_recipe()
        pangu_modules.__getattr__("Stage")
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert not running_a_recipe()
    assert "GOMP_SPINCOUNT" not in os.environ
