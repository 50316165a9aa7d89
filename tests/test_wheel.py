"""The built wheel works in an environment of its own, from another folder."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = (".py", ".c", ".jinja", ".json", ".yaml")
TRAIN = """
import sys
from recipes.scalenet_digits import recipe
import pangu_modules
assert pangu_modules.__file__.startswith(sys.prefix), pangu_modules.__file__
result = recipe.stage("base").derive(trainer={"fast_dev_run": True}).fit("run", quiet=True)
assert result.checkpoint.is_file() and result.parameters == 604938, result
page, _ = pangu_modules.write_report(pangu_modules.RunReport("a run"), "report")
assert "a run" in page.read_text()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building writes into the source folder
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in files:
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_contains_the_four_packages_and_no_others(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"pangu_modules", "callbacks", "datamodules", "recipes"}
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    sources = (path for path in (ROOT / "pangu_modules").rglob("*") if path.suffix in SHIPPED)
    tracked = {path.relative_to(ROOT).as_posix() for path in sources}
    assert tracked <= set(names)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    # With our sources on PYTHONPATH pip would find the package there already.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*install, str(wheel)], check=True, env=variables)
    (inner,) = folder.glob("lib/python*/site-packages")
    outer = next(path for path in site.getsitepackages() if "site-packages" in path)
    (inner / "outer.pth").write_text(outer + "\n")  # torch and the like; our editable install is not followed from here
    return folder


@pytest.fixture
def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PANGU_RUN_DIR")}


def test_trains_a_step_from_another_folder(environment: Path, variables: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([str(environment / "bin" / "python"), "-c", TRAIN], cwd=tmp_path, check=True, env=variables)


def test_the_console_script_lists_and_runs_the_recipes(
    environment: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    pangu = str(environment / "bin" / "pangu")
    listed = subprocess.run([pangu, "list"], cwd=tmp_path, check=True, env=variables, capture_output=True, text=True)
    assert "scalenet_digits" in listed.stdout
    words = ["scalenet_digits", "fit", "--stage", "base", "--base.trainer.fast_dev_run", "true"]
    subprocess.run([pangu, *words], cwd=tmp_path, check=True, env=variables)
    assert (tmp_path / "runs" / "scalenet_digits" / "dry_run_0" / "base" / "result.json").is_file()
