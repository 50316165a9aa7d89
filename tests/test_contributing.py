"""The stranger's test: CONTRIBUTING, followed word by word in a copy of the repository, adds a method that works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = 6
BLOCK = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", flags=re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
REGISTRY = "pangu_modules/common/registry.py"
SETTINGS = "tests/support/settings.py"


def registered(text: str, entries: str) -> str:
    """Return the registry's text with each entry of CONTRIBUTING put first under its kind."""
    for kind, entry in re.findall(r'^"(\w+)": \{(.+)\}$', entries, flags=re.MULTILINE):
        head = f'    "{kind}": {{\n'
        assert head in text, kind
        text = text.replace(head, f"{head}        {entry},\n", 1)
    return text


def with_setting(text: str, entry: str) -> str:
    """Return the table of tiny settings with CONTRIBUTING's entry put first."""
    head = "SETTINGS: dict[str, Setting] = {\n"
    assert head in text
    return text.replace(head, f"{head}    {entry.strip()},\n", 1)


EDITED = {REGISTRY: registered, SETTINGS: with_setting}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert path.exists() == (name in EDITED), name
        path.write_text(EDITED[name](path.read_text(encoding="utf-8"), text) if name in EDITED else text)
    return folder


def run(copy: Path, *words: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_at_most_six_files() -> None:
    assert set(EDITED) <= set(FILES)
    assert 4 <= len(FILES) <= MOST_FILES


def test_its_own_test_passes(copy: Path) -> None:
    assert "1 passed" in run(copy, "-m", "pytest", "-q", "tests/callbacks/test_bias_free.py")


def test_the_generic_tests_ask_of_it_what_they_ask_of_all(copy: Path) -> None:
    words = ["-m", "pytest", "-q", "tests/generic/test_every_method.py", "-k", "drop_biases or is_missing"]
    assert "3 passed" in run(copy, *words)


def test_its_claim_is_found_and_holds(copy: Path) -> None:
    assert "holds" in run(copy, "-m", "benchmarks.claims", "bias_free", "--miniature")
