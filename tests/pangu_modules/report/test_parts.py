"""Parts of the report that callbacks leave in a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pangu_modules.report.parts import PARTS, add_figure, add_parts, add_table, read_table
from pangu_modules.report.run_report import RunReport
from pangu_modules.report.tables import Column


def test_parts_are_collected_in_order_and_replaced_by_name(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    add_table(tmp_path, "2_sizes", "Sizes", [{"layer": 0, "heads": 9}])
    add_table(tmp_path, "1_scores", "Old scores", [{"layer": 0, "score": 0.5}])
    add_table(tmp_path, "1_scores", "Scores", [{"layer": 0, "score": 0.25}])
    add_figure(tmp_path, "3_map", "Kept heads by layer", figure)
    report = RunReport("A run")
    add_parts(tmp_path, report, prefix="prune")
    assert [table.title for table in report.tables] == ["prune: Scores", "prune: Sizes"]
    assert report.tables[0].cells == [["0", "0.2500"]]
    assert [figure.caption for figure in report.figures] == ["prune: Kept heads by layer"]


def test_a_folder_without_parts_adds_nothing(tmp_path: Path) -> None:
    report = RunReport("A run")
    add_parts(tmp_path, report)
    assert not report.tables
    assert not report.figures


def test_rows_are_read_back_as_records_and_printed_as_described(tmp_path: Path) -> None:
    rows = [{"layer": 0, "size": 1234.56}, {"layer": 1, "size": None}]
    columns = {"size": Column("size", "MB", 1), "layer": "layer"}
    add_table(tmp_path, "sizes", "Sizes", rows, columns)
    table = read_table(tmp_path, "sizes")
    assert table.rows == rows
    assert list(table.columns.items()) == [("size", Column("size", "MB", 1)), ("layer", Column("layer"))]
    report = RunReport("A run")
    add_parts(tmp_path, report)
    assert report.tables[0].headings == ["size (MB)", "layer"]
    assert report.tables[0].cells == [["1,234.6", "0"], ["-", "1"]]


def test_a_value_without_a_column_is_refused_when_the_table_is_added(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table 'Sizes': no column for 'sze'. Did you mean 'size'\?"):
        add_table(tmp_path, "sizes", "Sizes", [{"sze": 1}], {"size": "size"})
    assert not (tmp_path / PARTS).exists()
