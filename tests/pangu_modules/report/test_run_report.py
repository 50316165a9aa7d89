import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from pangu_modules.report.curves import read_curves
from pangu_modules.report.markdown import escape, fence_for, markdown_table
from pangu_modules.report.origin import Origin
from pangu_modules.report.run_report import (
    Column,
    RunReport,
    collect_versions,
    figure_to_png,
    learning_curves,
    terminal_table,
)
from pangu_modules.report.tables import format_float, table_of
from pangu_modules.report.writing import write_report

HOSTILE = (
    '<script src="https://example.org/x.js">alert(1)</script> & "quotes" | pipe `code` ![i](http://example.org/i.png)'
)

# What a model may write into a title, a cell, a caption or a configuration, and what the page must show for it.
MODEL_OUTPUT = (
    "</pre></td><script>alert('1')</script>\"{{ 7*7 }}{% raw %}\x1b[31mred\x00 \u202egpj\u2066 \u200f\ud800 &amp;"
)
SHOWN = (
    "</pre></td><script>alert('1')</script>\"{{ 7*7 }}{% raw %}"
    r"\u001b[31mred\u0000 \u202egpj\u2066 \u200f\ud800 &amp;"
)

METRICS = """epoch,lr,step,test/accuracy,train/loss,val/accuracy,val/loss
0,,9,,2.25,,
0,,31,,,0.5,1.5
0,0.002,31,,,,
1,,59,,nan,,
1,,63,,,0.75,0.5
1,,64,0.8,,,
"""


def small_figure():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1], [0, 1])
    return figure


@pytest.fixture
def report():
    report = RunReport(
        title=HOSTILE,
        summary=[HOSTILE],
        config_yaml="text: '```'\nother: <b>\n",
        versions={"torch": "2.14.1"},
        seeds={"base": 3},
        seconds={"base": 61.25},
    )
    columns = {"model": "model", "accuracy": Column("accuracy", "%", 1)}
    report.add_table(HOSTILE, [{"model": HOSTILE, "accuracy": 97.125}], columns)
    report.add_figure(small_figure(), HOSTILE)
    report.add_figure(figure_to_png(small_figure()), "Second figure")
    return report


class Page(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def test_page_escapes_everything_and_loads_nothing(report, tmp_path):
    page, _ = write_report(report, tmp_path)
    parsed = Page(page.read_text())
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert parsed.text.count(HOSTILE) == 6  # <title>, h1, summary, table title, cell, figure caption
    sources = [value for _, name, value in parsed.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page.read_text()
    policy = [value for _, name, value in parsed.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_model_output_is_text_wherever_it_stands(tmp_path):
    report = RunReport(
        title=MODEL_OUTPUT,
        summary=[MODEL_OUTPUT],
        config_yaml=MODEL_OUTPUT,
        versions={MODEL_OUTPUT: MODEL_OUTPUT},
        seeds={MODEL_OUTPUT: 1},
        seconds={MODEL_OUTPUT: 1.0},
        origin=Origin(MODEL_OUTPUT, MODEL_OUTPUT, {MODEL_OUTPUT: MODEL_OUTPUT}, [MODEL_OUTPUT]),
    )
    report.add_table(MODEL_OUTPUT, [{MODEL_OUTPUT: MODEL_OUTPUT}])
    report.add_figure(small_figure(), MODEL_OUTPUT)
    page, markdown = write_report(report, tmp_path)
    html = page.read_text(encoding="utf-8")
    parsed, plain = Page(html), Page(write_report(RunReport("t"), tmp_path / "plain")[0].read_text())
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert {name for _, name, _ in parsed.attributes} - {name for _, name, _ in plain.attributes} == {
        "class",
        "tabindex",
        "alt",
        "src",
    }
    assert parsed.text.count(SHOWN) == 17  # each place above once, the title also in <title>
    assert [value for _, name, value in parsed.attributes if name == "alt"] == [SHOWN]
    assert "49" not in parsed.text
    for written in (html, markdown.read_text(encoding="utf-8")):
        assert not set("\x1b\x00\u202e\u2066\u200f") & set(written)


def test_only_figures_wider_than_half_the_page_take_its_whole_width(tmp_path):
    report = RunReport("r")
    for width in (5.6, 9):
        report.add_figure(Figure(figsize=(width, 1)), f"{width}")
    assert [figure.wide for figure in report.figures] == [False, True]
    parsed = Page(write_report(report, tmp_path)[0].read_text())
    assert [value for tag, name, value in parsed.attributes if tag == "figure" and name == "class"] == ["wide"]


def test_origin_stands_in_both_files(tmp_path):
    origin = Origin("python x.py fit", "abc-dirty", {"cores": "2 of 4"}, ["python x.py test", "python x.py plan"])
    for file in write_report(RunReport("r", origin=origin), tmp_path):
        text = file.read_text()
        for part in ("python x.py fit", "python x.py test\npython x.py plan", "abc-dirty", "2 of 4"):
            assert part in text


def test_page_holds_the_figures_that_lie_beside_the_markdown(report, tmp_path):
    page, markdown = write_report(report, tmp_path)
    embedded = re.findall(r"base64,([A-Za-z0-9+/=]+)", page.read_text())
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == ["01-script-src-https-example-org-x-js-alert.png", "02-second-figure.png"]
    assert [base64.b64decode(data) for data in embedded] == [file.read_bytes() for file in files]
    links = re.findall(r"(?<!\\)\]\((\S+)\)\n", markdown.read_text())
    assert links == [f"figures/{file.name}" for file in files]


def test_page_shows_settings_and_configuration(report, tmp_path):
    text = Page(write_report(report, tmp_path)[0].read_text()).text
    for part in ("accuracy (%)", "97.1", "wall-clock time (s)", "61.2", "2.14.1", "text: '```'\nother: <b>"):
        assert part in text


def test_every_table_of_the_page_scrolls_in_its_own_box(report, tmp_path):
    html = write_report(report, tmp_path)[0].read_text()
    assert html.count("<table>") == html.count('<div class="scroll" tabindex="0"><table>') == 4


def test_markdown_escapes_cells_and_fences_the_configuration(report, tmp_path):
    markdown = write_report(report, tmp_path)[1].read_text()
    assert "<script" not in markdown
    assert r"\| pipe \`code\` !\[i\](http" in markdown
    assert "````yaml\ntext: '```'\nother: <b>\n````" in markdown
    assert "| base | 61.2 |" in markdown
    assert "| base | 3 |" in markdown


def test_writing_again_replaces_the_files_and_leaves_no_temporary_ones(report, tmp_path):
    write_report(report, tmp_path)
    report.title = "Second"
    page, markdown = write_report(report, tmp_path)
    assert "<h1>Second</h1>" in page.read_text()
    assert markdown.read_text().startswith("# Second\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html", "report.json", "report.md"]


def test_an_empty_report_has_only_its_title(tmp_path):
    page, markdown = write_report(RunReport("Nothing"), tmp_path)
    assert markdown.read_text() == "# Nothing\n"
    assert "<table>" not in page.read_text()


def test_a_figure_that_is_no_png_is_refused():
    with pytest.raises(ValueError, match=r"figure 'curve': the bytes are not a PNG"):
        RunReport("r").add_figure(b"GIF89a", "curve")


def test_table_orders_columns_and_names_a_lost_value():
    columns = {"n": Column("parameters"), "name": "model"}
    table = table_of([{"name": "base", "n": 605_130}, {"name": "deep"}], columns)
    assert table.headings == ["parameters", "model"]
    assert table.cells == [["605,130", "base"], ["-", "deep"]]
    assert table.numeric == [True, False]
    with pytest.raises(ValueError, match=r"no column for 'nmae'. Did you mean 'name'\? Columns: n, name"):
        table_of([{"nmae": "x"}], columns)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.97126, None, "0.9713"),
        (0.0001234, None, "0.0001234"),
        (0.00001234, None, "1.234e-05"),
        (-12.3456, None, "-12.35"),
        (9.9999, None, "10.00"),
        (123456.7, None, "123,457"),
        (0.0, None, "0.000"),
        (2.0, 0, "2"),
        (1234.5, 2, "1,234.50"),
        (float("inf"), 2, "inf"),
        (float("nan"), None, "nan"),
    ],
)
def test_floats_keep_four_significant_digits(value, digits, text):
    assert format_float(value, digits) == text


def test_cells_of_every_type():
    assert [Column("c").text(value) for value in (True, False, None, 1234, 0.5, "x", (1, 2))] == [
        "yes",
        "no",
        "-",
        "1,234",
        "0.5000",
        "x",
        "(1, 2)",
    ]


def test_markdown_aligns_numbers_to_the_right():
    table = table_of([{"a|b": "x_y", "n": 1}])
    assert markdown_table(table) == "| a\\|b | n |\n| --- | ---: |\n| x_y | 1 |"


def test_markdown_escape_leaves_words_with_underscores_alone():
    assert escape("val_loss _it_ *b*\nnew # line") == r"val_loss \_it\_ \*b\* new # line"
    assert escape("# no heading") == r"\# no heading"
    assert fence_for("a ```` b") == "`````"


def test_terminal_table_prints_markup_literally():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal_table(
        [{"model": "[red]base[/red]", "loss": 0.15}], {"model": "m", "loss": Column("loss", "nats", 3)}, "T", console
    )
    text = console.export_text()
    assert "[red]base[/red]" in text
    assert "loss (nats)" in text
    assert "0.150" in text


def test_curves_read_only_finite_training_and_validation_values(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    assert read_curves(path) == {
        "train/loss": ([9], [2.25]),
        "val/accuracy": ([31, 63], [0.5, 0.75]),
        "val/loss": ([31, 63], [1.5, 0.5]),
    }


def test_curves_of_a_file_that_was_cut_off_are_those_of_its_whole_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    for cut, curves in (
        ("", {}),
        ("epoch,step,train/loss", {}),
        ("epoch,step,train/loss\n0,1,2.5\n0,2,1e", {"train/loss": ([1], [2.5])}),
        ("epoch,step,train/loss\n0,1,2.5\n0,", {"train/loss": ([1], [2.5])}),
        ("epoch,train/loss,step\n0,2.5,1\n0,1.5", {"train/loss": ([1], [2.5])}),
    ):
        path.write_text(cut)
        assert read_curves(path) == curves


def test_learning_curves_draw_each_metric_with_its_unit(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    figures = learning_curves({"base": path, "expand": path})
    assert list(figures) == ["Learning curve: accuracy", "Learning curve: loss"]
    accuracy, loss = (figure.axes[0] for figure in figures.values())
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert loss.get_ylabel() == "loss (nats)"
    assert loss.get_xlabel() == "optimizer step"
    assert list(accuracy.lines[0].get_ydata()) == [50.0, 75.0]
    labels = [line.get_label() for line in loss.lines]
    assert labels == ["base train", "base val", "expand train", "expand val"]


def test_learning_curves_of_nothing_are_no_figures(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step\n")
    assert learning_curves({"base": path}) == {}


def test_versions_list_what_is_installed():
    versions = collect_versions(["torch", "no-such-package-anywhere"])
    assert list(versions) == ["python", "torch"]


def test_importing_the_report_needs_neither_torch_nor_lightning_nor_matplotlib():
    heavy = "('torch', 'lightning', 'matplotlib', 'rich', 'jinja2')"
    program = f"import sys, pangu_modules.report.writing; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
