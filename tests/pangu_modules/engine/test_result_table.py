"""The table of results: a line a stage that fits a terminal, also where a metric comes once a label."""

from __future__ import annotations

from pangu_modules.engine.result_table import narrow, result_columns, result_row
from pangu_modules.report.tables import table_of

POSTTRAINED = {
    "metrics": {
        **{"test/accuracy_fast": 0.365, "test/accuracy_thinking": 0.8202, "test/kl_fast": 0.4418},
        **{"test/kl_thinking": 0.06112, "test/target_tokens": 290_100.0, "test/loss": 0.2, "test/perplexity": 1.222},
    },
    **{"parameters": 101_824, "epochs": 1, "seconds": 146.9},
}


def shown(*results):
    rows = narrow([{"stage": f"stage {number}", **result_row(result)} for number, result in enumerate(results)])
    table = table_of(rows, result_columns(rows))
    return table.headings, [list(row) for row in table.cells]


def test_metrics_by_label_have_a_heading_each_and_leave_out_what_the_report_has():
    headings, cells = shown(POSTTRAINED)
    assert headings == [
        *("stage", "accuracy, fast (%)", "accuracy, thinking (%)", "KL, fast (nats)", "KL, thinking (nats)"),
        *("tokens learned from", "time (s)"),
    ]
    assert cells == [["stage 0", "36.5", "82.0", "0.442", "0.061", "290,100", "147"]]


def test_a_plain_result_keeps_its_columns():
    plain = {"metrics": {"test/accuracy": 0.947, "test/accuracy_top5": 0.99, "test/loss": 0.186}, "epochs": 45}
    headings, cells = shown(plain)
    assert headings == ["stage", "accuracy (%)", "loss (nats)", "epochs"]
    assert cells == [["stage 0", "94.7", "0.186", "45"]]
