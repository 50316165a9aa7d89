"""A report as data: what is read back writes the same pages, and a damaged file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pangu_modules.report.origin import Origin
from pangu_modules.report.run_report import Column, RunReport
from pangu_modules.report.stored import stored_report
from pangu_modules.report.writing import write_report


def written(folder: Path) -> list[bytes]:
    report = RunReport(
        title="A run <b>", summary=["one", "two"], config_yaml="a: 1\n", versions={"torch": "2"}, seeds={"s": 3},
        seconds={"s": 1.5}, origin=Origin("python x.py fit", "abc", {"cores": "2"}, ["python x.py test"]),
    )  # fmt: skip
    report.add_table(
        "Result", [{"a": 1.25, "b": None}, {"a": float("nan"), "b": "x"}], {"a": Column("A", "s", 2), "b": "b"}
    )
    report.add_figure(Figure((1, 1)), "A figure")
    return [path.read_bytes() for path in write_report(report, folder)]


def test_a_stored_report_writes_the_same_pages(tmp_path: Path) -> None:
    before = written(tmp_path)
    assert [path.read_bytes() for path in write_report(stored_report(tmp_path), tmp_path)] == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    file = tmp_path / "report.json"
    whole = file.read_text()
    for content in ("{", "[]", "{}", whole.replace('"cells"', '"cels"'), whole.replace('"title": "A', '"titel": "A')):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"report\.json is damaged .* remove it"):
            stored_report(tmp_path)
    file.write_text(whole.replace('"file_name": "', '"file_name": "/etc/'))
    assert len(stored_report(tmp_path).figures) == 1  # its own, inside the folder
