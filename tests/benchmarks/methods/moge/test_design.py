"""The design study: errors are computed from what is shown, and the committed results are those of today's code."""

from __future__ import annotations

from pathlib import Path

from benchmarks.methods.moge.design import REPORTED, SKEW, check_rows, main
from pangu_modules.simulator.hardware import CARDS
from pangu_modules.simulator.layout import Layout, Workload
from pangu_modules.simulator.model_shape import PANGU_PRO_MOE
from pangu_modules.simulator.throughput import simulate_prefill

ROOT = Path(__file__).parents[4]


def test_errors_are_those_of_the_figures_shown() -> None:
    rows = check_rows()
    assert len(rows) == len(REPORTED)
    for row, reported in zip(rows, REPORTED, strict=True):
        simulated = float(row["simulated"].replace(",", ""))
        assert abs(float(row["error"].rstrip("%")) / 100 - (simulated / reported.value - 1)) < 0.01
    assert {row["paper"] for row in rows} >= {"4,828", "1,148", "1,055", "201"}


def test_committed_results_are_current(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    committed = (ROOT / "docs/moge_simulator.md").read_text()
    document.write_text(committed)
    assert main(["--results", str(tmp_path), "--document", str(document)]) == 0
    assert document.read_text() == committed, "run python -m benchmarks.methods.moge.design"
    assert (tmp_path / "moge_design.md").read_text() == (ROOT / "benchmarks/results/moge_design.md").read_text()
    assert (tmp_path / "moge_design.png").read_bytes().startswith(b"\x89PNG")


def test_gain_of_balance_stated_in_the_document() -> None:
    layout, card = Layout(attention_dp=8, expert_ep=8, shared_tp=8), CARDS["ascend_800i_a2"]
    top_k = PANGU_PRO_MOE.derive(num_groups=1)
    gains = []
    for cv in (0.0, SKEW):
        workload = Workload(expert_load_cv=cv)
        grouped, ordinary = (simulate_prefill(shape, card, layout, workload) for shape in (PANGU_PRO_MOE, top_k))
        gains.append(f"{100 * (grouped.tokens_per_s / ordinary.tokens_per_s - 1):.1g} %")
    assert gains == ["0.4 %", "8 %"]
    assert all(f"{gain} " in (ROOT / "docs/moge_simulator.md").read_text() for gain in gains)
