"""The hash of the code that was measured: what counts, what does not, and what is called stale."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import code
from benchmarks.harness.code import ROOT, changed, hash_of, label
from benchmarks.pages.stale import main, stale_lines, state

SOURCE = '"""What it does."""\n\ndef double(x):\n    """Return twice x."""\n    return 2 * x  # why\n'


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.c").write_text("int b;\n")
    return tmp_path


@pytest.fixture(autouse=True)
def _forget_files():
    code._file_hash.cache_clear()


def changed_by(root, file, text):
    before = hash_of(["a.py", "b.c"], root)
    (root / file).write_text(text)
    code._file_hash.cache_clear()
    return hash_of(["a.py", "b.c"], root) != before


@pytest.mark.parametrize(
    "text",
    [
        '"""Other."""\ndef double(x):\n    return (2 *\n        x)\n',
        SOURCE.replace("# why", "# because"),
        SOURCE + "\n\n",
    ],
)
def test_comments_docstrings_and_formatting_change_nothing(root, text):
    assert not changed_by(root, "a.py", text)


@pytest.mark.parametrize(
    "text",
    [SOURCE.replace("2 * x", "3 * x"), SOURCE.replace("2 * x", "2 + x"), SOURCE.replace("2 * x", "None")],
)
def test_code_counts(root, text):
    assert changed_by(root, "a.py", text)


def test_c_sources_count_whole_and_lost_files_are_a_change(root):
    assert changed_by(root, "b.c", "int c;\n")
    now = {str(hash_of(["a.py"], root)): ["a.py"]}
    assert not changed(now, now, root)
    (root / "a.py").unlink()
    code._file_hash.cache_clear()
    assert changed(now, now, root)


def test_a_process_has_the_files_it_imported_and_no_tables_or_harness():
    program = (
        "import json, benchmarks.methods.scalenet.claims, pangu_modules.llm.onebit.kernel\n"
        "from benchmarks.harness.code import code_of_process\nprint(json.dumps(code_of_process()))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    ((found, files),) = json.loads(answer.stdout).items()
    assert "benchmarks/methods/scalenet/task.py" in files
    assert "benchmarks/harness/recipe_arm.py" in files
    assert "pangu_modules/llm/onebit/kernel.py" in files
    assert not [file for file in files if file.endswith("claims.py") or file == "benchmarks/harness/arms.py"]
    assert "pangu_modules/llm/onebit/kernel.c" in files
    assert files == sorted(files)
    assert hash_of(files) == found


def test_results_are_labelled_and_stale_ones_listed(root, capsys):
    known = str(hash_of(["a.py"], root))
    result = {"code": {known: ["a.py"]}, "arms": {"one": {"code": [known]}, "two": {"code": [known]}}}
    assert state(result, root) == ""
    assert len(label(result)) == 7
    half = {**result, "arms": {"one": {"code": [known]}, "two": {}}}
    assert label(half) == "unknown"
    assert state(half, root) == "code of 1 of 2 arms unknown"
    old = {
        "code": {"0" * 12: ["a.py"], known: ["a.py"]},
        "arms": {"one": {"code": ["0" * 12]}, "two": {"code": [known]}},
    }
    assert state(old, root) == "1 of 2 arms are stale (one)"
    assert label(old) != label(result)
    (root / "claims").mkdir()
    (root / "speed").mkdir()
    (root / "claims" / "toy.json").write_text(json.dumps(old))
    (root / "speed" / "toy.json").write_text(json.dumps({"code": {"0" * 12: ["a.py"]}}))
    (root / "speed" / "slow.json").write_text("{}")
    lines = ["claims/toy: 1 of 2 arms are stale (one)", "speed/slow: code unknown", "speed/toy: stale"]
    assert list(stale_lines(root, root)) == lines
    assert main(["--results", str(root)]) == 0
    assert "speed/slow: code unknown" in capsys.readouterr().out


def test_every_committed_result_has_a_label():
    for path in (Path(ROOT) / "benchmarks" / "results").glob("*/*.json"):
        assert label(json.loads(path.read_text()))
