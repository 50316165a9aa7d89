"""The code of the pages about NPUs runs as it stands, on the fake one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from npu_ranks import with_npus

ROOT = Path(__file__).parents[3]
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("ascend", "ascend_migration")
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), flags=re.DOTALL)
    )
]


def run(code):
    exec(compile(code, "<document>", "exec", dont_inherit=True), {"__name__": "block"})
    return True


@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_of_the_pages_runs(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    assert with_npus(run, tmp_path / "run", code)


def test_the_table_has_every_row():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/ascend_migration.md").read_text(), flags=re.MULTILINE)
    assert rows == [str(number) for number in range(1, 15)]
