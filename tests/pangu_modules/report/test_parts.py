"""Parts of the report that callbacks leave in a run's folder."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pangu_modules.report.parts import collect_parts, leave_figure, leave_table
from pangu_modules.report.run_report import RunReport


def test_parts_are_collected_in_order_and_replaced_by_name(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    leave_table(tmp_path, "2_sizes", "Sizes", [{"layer": 0, "heads": 9}])
    leave_table(tmp_path, "1_scores", "Old scores", [{"layer": 0, "score": 0.5}])
    leave_table(tmp_path, "1_scores", "Scores", [{"layer": 0, "score": 0.25}])
    leave_figure(tmp_path, "3_map", "Kept heads by layer", figure)
    report = RunReport("A run")
    collect_parts(tmp_path, report, prefix="prune")
    assert [table.title for table in report.tables] == ["prune: Scores", "prune: Sizes"]
    assert report.tables[0].cells == [["0", "0.2500"]]
    assert [figure.caption for figure in report.figures] == ["prune: Kept heads by layer"]


def test_a_folder_without_parts_adds_nothing(tmp_path: Path) -> None:
    report = RunReport("A run")
    collect_parts(tmp_path, report)
    assert not report.tables
    assert not report.figures
