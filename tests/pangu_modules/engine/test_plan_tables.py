"""What `plan` prints: units that people read, and nothing wider than 80 columns."""

from __future__ import annotations

import pytest

from pangu_modules.engine.plan_tables import plan_rows, print_plan, print_throughput, readable_amount

LAYOUT = "attention_dp=2, attention_tp=4, expert_tp=2, expert_ep=4, quantized=true, prefill_chunk=4096"
ROW = {
    "layout": LAYOUT,
    "prefill": 123_456.7,
    "first_ms": 1234.56,
    "decode": 21_234.5,
    "batch": 12_345,
    "step_ms": 1234.56,
    "gb": 123.456,
    "mostly": "attention",
}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("training_bytes", 999, "999 B"),
        ("training_bytes", 9_678_064, "9.68 MB"),
        ("training_bytes", 99_960, "100 kB"),
        ("training_bytes", 999_600, "1.00 MB"),
        ("inference_bytes", 287_000_000_000, "287 GB"),
        ("forward_flops_per_sample", 17_582_740_224, "17.6 GFLOP"),
        ("forward_flops_per_token", 2 * 10**15, "2.00 PFLOP"),
        ("parameters", 604_938, "604,938"),
    ],
)
def test_amounts(name: str, value: int, text: str) -> None:
    assert readable_amount(name, value) == text


def test_references_have_the_same_unit() -> None:
    figures = {
        "model": "Net",
        "parameters": 10,
        "other_bytes": 1000,
        "reference": {"parameters": 11, "other_bytes": 2_000_000},
    }
    assert plan_rows(figures) == [
        {"quantity": "parameters", "value": "10", "reference": "11"},
        {"quantity": "other", "value": "1.00 kB", "reference": "2.00 MB"},
    ]


def test_both_tables_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_plan({"training_bytes": 10**9, "missing": ["no operations"]}, "Title")
    print_throughput([ROW, {**ROW, "decode": 3.0}], "card")
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("layout ")) <= 80
    for whole in ("123,457", "1,234.6", "12,345", "123.5", "attention", "(tok/s)"):
        assert whole in printed  # no cell is cut or broken
    assert "no operations" in printed
    assert f"layout 2: {LAYOUT.replace(', ', ',')}" in printed
