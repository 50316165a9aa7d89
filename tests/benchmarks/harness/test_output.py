"""The result file, its tables and its figure."""

import json

import pytest
from toy_method import ACCURACY, LOSS, method, results

from benchmarks.harness.output import (
    claims_table,
    draw,
    judge,
    measured_text,
    render,
    result_of,
    terminal_rows,
    write_results,
)


def test_result_has_claims_with_verdicts_and_all_raw_numbers():
    result = result_of(method(), results())
    accuracy, loss, size = result["claims"]
    assert accuracy["id"] == "accuracy"
    assert accuracy["measured"] == pytest.approx(100 * (0.02 - 0.5 * 0.001))
    assert accuracy["spread"] == pytest.approx(100 * 0.5 * 0.003)
    assert accuracy["unit"] == "points"
    assert accuracy["seeds"] == [0, 1, 2]
    assert [entry["verdict"] for entry in (accuracy, loss, size)] == ["holds", "holds", "holds"]
    assert loss["measured"] == pytest.approx(0.1 - 0.001)
    assert [entry["id"] for entry in result["reported"]] == ["time", "extra"]
    assert "verdict" not in result["reported"][0]
    assert result["reported"][0]["measured"] == pytest.approx(1.07)
    assert result["reported"][1]["seeds"] == [0]
    assert result["arms"]["better"]["results"]["2"]["size"] == 107
    assert result["arms"]["better"]["config"] == {"rank": 8}
    assert result["seconds"] == 14.0
    assert result["versions"]["python"]


def test_two_seeds_decide_nothing():
    verdicts = [entry["verdict"] for entry in result_of(method(), results(2))["claims"]]
    assert verdicts == ["undecided"] * 3


def test_a_claim_without_results_is_an_error():
    with pytest.raises(ValueError, match="claim 'extra': no seed has results of both extra and base"):
        judge(method().claims[-1], {1: {"base": {"accuracy": 1.0}}})


def test_written_results_are_whole(tmp_path):
    result = result_of(method(), results())
    paths = write_results(result, method(), tmp_path)
    assert [path.name for path in paths] == ["toy.json", "toy.md", "toy.png"]
    assert json.loads(paths[0].read_text()) == result
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    text = paths[1].read_text()
    assert "| Better by a point | +7.42 points | +1.95 ± 0.15 points | 3 | holds |" in text
    assert "| better | the method \\| better | 3 | 92.0 ± 0.1 | 0.201 ± 0.003 | 1 |" in text
    assert "| Extra arm | - | +0.00 points | 1 |" in text


def test_figure_shows_each_arm_and_seed_with_units():
    figure = draw(result_of(method(), results()), (ACCURACY, LOSS))
    accuracy, loss = figure.axes
    assert accuracy.get_xlabel() == "accuracy (%)"
    assert loss.get_xlabel() == "loss (nats)"
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["base", "better", "extra"]
    assert list(accuracy.lines[0].get_xdata()) == pytest.approx([90.4, 89.8, 90.1])
    assert (accuracy.get_xscale(), loss.get_xscale()) == ("linear", "linear")


def test_figure_has_a_logarithmic_axis_where_values_span_more():
    by_seed = results()
    by_seed[0]["base"] = {**by_seed[0]["base"], "loss": 3.0}
    accuracy, loss = draw(result_of(method(), by_seed), (ACCURACY, LOSS)).axes
    assert (accuracy.get_xscale(), loss.get_xscale()) == ("linear", "log")


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([2.5, 5.0, 1.3, 1.6], "points", "+2.6 ± 1.7 points"),
        ([0.015, 0.009, 0.011, 0.011], "nats", "+0.0115 ± 0.0025 nats"),
        ([-0.01], "nats", "-0.01 nats"),
        ([2.31, 2.36], "times", "2.335 ± 0.035 times"),
        ([55_680, 55_680, 55_680], "", "+55,680"),
    ],
)
def test_measured_text_shows_two_digits_of_the_spread(values, unit, text):
    from statistics import fmean, stdev

    spread = stdev(values) if len(values) > 1 else 0.0
    assert measured_text({"values": values, "measured": fmean(values), "spread": spread, "unit": unit}) == text


def test_terminal_table_and_markdown_agree():
    result = result_of(method(), results())
    measured = [row["measured"] for row in terminal_rows(result)]
    assert measured == [row["measured"] for row in claims_table(result)[0]]
    assert terminal_rows(result)[1]["rule"] == "every seed above 0"
    rows, columns = claims_table(result)
    assert list(columns) == ["statement", "paper", "measured", "seeds", "verdict"]
    assert all(row["measured"] in render(result, (ACCURACY,)) for row in rows)
