"""The design study of Pangu Pro MoE: the simulator against the throughputs the paper reports, and the search.

``python -m benchmarks.methods.moge.design`` writes ``benchmarks/results/moge_design.{json,md,png}`` and the marked
tables of ``docs/moge_simulator.md``. Nothing is fitted: efficiencies and workload are the defaults, the
errors are what they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages.tables import replace_sections
from pangu_modules.common.files import write_atomically
from pangu_modules.report.markdown import markdown_table
from pangu_modules.report.run_report import collect_versions, figure_to_png
from pangu_modules.report.tables import table_of
from pangu_modules.simulator.design_search import (
    Design,
    DesignSpace,
    best_of_each_shape,
    design_rows,
    draw,
    pareto_front,
    search,
)
from pangu_modules.simulator.hardware import CARDS, Efficiency
from pangu_modules.simulator.layout import Workload
from pangu_modules.simulator.model_shape import DENSE_32B, DENSE_72B, PANGU_PRO_MOE, ModelShape
from pangu_modules.simulator.throughput import DEFAULT_EFFICIENCY, rank_layouts

CARD_COUNT = 4
# The paper's prompts, outputs, batch and number of cards were not at hand: these are assumed, before any comparison.
WORKLOAD = Workload(prompt_tokens=2048, output_tokens=2048, prefill_batch=2, max_step_ms=100)
DUO_WORKLOAD = WORKLOAD.derive(voted_experts=5)  # the public serving code's default on that card
SKEW = 0.44  # std / mean of expert loads measured here for a small top-K model with auxiliary loss 0.01
READ, RECALLED = "read in a public source", "from memory of the paper"


@dataclass(frozen=True)
class Reported:
    """A figure of the paper: throughput (tokens/s per card), or its ratio to a dense model's."""

    phase: str
    card: str
    value: float
    source: str
    over: ModelShape | None = None


REPORTED = (
    Reported("prefill", "ascend_800i_a2", 4828, READ),
    Reported("decode", "ascend_800i_a2", 1148, READ),
    Reported("prefill", "ascend_800i_a2", 3.03, READ, DENSE_72B),
    Reported("decode", "ascend_800i_a2", 1.97, READ, DENSE_72B),
    Reported("prefill", "ascend_800i_a2", 1.42, READ, DENSE_32B),
    Reported("decode", "ascend_800i_a2", 1.18, RECALLED, DENSE_32B),
    Reported("prefill", "ascend_300i_duo", 1055, RECALLED),
    Reported("decode", "ascend_300i_duo", 201, RECALLED),
)
# One assumption changed at a time, on the Ascend 800I A2.
CHANGES: Mapping[str, dict[str, Any]] = {
    "as assumed": {},
    "8 cards": {"cards": 8},
    "32 GB cards (800 GB/s), 4 of them hold too little: 8": {"card": "ascend_800i_a2_32gb", "cards": 8},
    "prompts and outputs of 1024": {"workload": {"prompt_tokens": 1024, "output_tokens": 1024}},
    "steps of at most 30 ms": {"workload": {"max_step_ms": 30}},
    "cache in 16 bit": {"workload": {"kv_bits": 16}},
    "communication in 8 bit": {"workload": {"communication_bits": 8}},
    "half of the communication hidden": {"efficiency": {"overlap": 0.5}},
    "matrix products at 0.5 of the peak": {"efficiency": {"matmul": 0.5}},
    "memory at 0.6 of the peak": {"efficiency": {"memory": 0.6}},
    "links at 0.5 of the peak": {"efficiency": {"link": 0.5}},
    "10 us per operator": {"efficiency": {"operator_latency_us": 10}},
}


def best(
    shape: ModelShape,
    card: str,
    *,
    cards: int = CARD_COUNT,
    workload: Workload = WORKLOAD,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> dict[str, float]:
    """Return the prefill and decoding throughput of the best layout for each."""
    devices = cards * CARDS[card].devices_per_card
    estimates = rank_layouts(shape, CARDS[card], devices, workload, efficiency)
    prefill = max(estimate.prefill.tokens_per_s for estimate in estimates)
    return {"prefill": prefill, "decode": estimates[0].decode.tokens_per_s}


def check_rows() -> list[dict[str, Any]]:
    """Return a row per reported figure: what the paper says, what the simulator says, and its relative error."""
    rows = []
    for reported in REPORTED:
        workload = DUO_WORKLOAD if reported.card == "ascend_300i_duo" else WORKLOAD
        simulated = best(PANGU_PRO_MOE, reported.card, workload=workload)[reported.phase]
        quantity = f"{reported.phase}, tokens/s per card"
        if reported.over is not None:
            simulated /= best(reported.over, reported.card, workload=workload)[reported.phase]
            quantity = f"{reported.phase}, ratio to {reported.over.name}"
        rows.append(
            {
                "card": CARDS[reported.card].title,
                "quantity": quantity,
                "paper": f"{reported.value:,}",
                "simulated": f"{simulated:,.0f}" if reported.over is None else f"{simulated:.2f}",
                "error": f"{simulated / reported.value - 1:+.0%}",
                "paper's figure": reported.source,
            }
        )
    return rows


def sensitivity_rows() -> list[dict[str, str]]:
    """Return the two throughputs on the Ascend 800I A2 with one assumption changed at a time."""
    rows = []
    for name, change in CHANGES.items():
        found = best(
            PANGU_PRO_MOE,
            change.get("card", "ascend_800i_a2"),
            cards=change.get("cards", CARD_COUNT),
            workload=WORKLOAD.derive(**change.get("workload", {})),
            efficiency=DEFAULT_EFFICIENCY.derive(**change.get("efficiency", {})),
        )
        rows.append({"changed": name, **{phase: f"{value:,.0f}" for phase, value in found.items()}})
    return rows


def card_rows() -> list[dict[str, Any]]:
    """Return the table of cards: peak figures per device."""
    columns = {"tflops_16bit": "TFLOPS 16 bit", "tops_int8": "TOPS int8", "memory_gb": "GB", "memory_gb_per_s": "GB/s"}
    columns |= {"link_gb_per_s": "links GB/s", "network_gb_per_s": "network GB/s"}
    return [
        {
            "name": card.name,
            **{title: _plain(getattr(card, name)) for name, title in columns.items()},
            "devices per card": card.devices_per_card,
            "figures from": card.sources["tflops_16bit"].document,
            "re-read": f"{sum(source.verified for source in card.sources.values())} of {len(card.sources)}",
        }
        for card in CARDS.values()
    ]


def _plain(value: float | None) -> int | float | None:
    return int(value) if value is not None and value == int(value) else value


def front_rows(designs: list[Design]) -> list[dict[str, Any]]:
    """Return the shapes on the Pareto front, each in its fastest layout."""
    return design_rows(best_of_each_shape(pareto_front(designs)))


def sections(uniform: list[Design], skewed: list[Design]) -> dict[str, str]:
    """Return the tables as Markdown, by the name of their place in the document."""
    rows = {
        "moge check": check_rows(),
        "moge sensitivity": sensitivity_rows(),
        "moge cards": card_rows(),
        "moge front uniform": front_rows(uniform),
        "moge front skewed": front_rows(skewed),
    }
    return {name: markdown_table(table_of(table)) for name, table in rows.items()}


def main(arguments: list[str]) -> int:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods.moge.design", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--document", type=Path, default=Path("docs/moge_simulator.md"), help="where tables also go")
    options = parser.parse_args(arguments)
    space, hardware = DesignSpace(), CARDS["ascend_800i_a2"]
    uniform = search(space, PANGU_PRO_MOE, hardware)
    skewed = search(space, PANGU_PRO_MOE, hardware, Workload(expert_load_cv=SKEW))
    tables = sections(uniform, skewed)
    title = f"{len(skewed)} designs and layouts of one budget, 8 x {hardware.title}, top-K skewed"
    result = {
        "check": check_rows(),
        "sensitivity": sensitivity_rows(),
        "front_uniform": front_rows(uniform),
        "front_skewed": front_rows(skewed),
        "designs": design_rows(best_of_each_shape(skewed)),
        "sources": {name: card.plain()["sources"] for name, card in CARDS.items()},
        "settings": {"workload": WORKLOAD.plain(), "efficiency": DEFAULT_EFFICIENCY.plain(), "space": space.plain()},
        "versions": collect_versions(),
    }
    parts = ["# Design study of Pangu Pro MoE", *(f"## {name}\n\n{table}" for name, table in tables.items())]
    write_atomically(options.results / "moge_design.json", json.dumps(result, indent=1) + "\n")
    write_atomically(options.results / "moge_design.md", "\n\n".join([*parts, "![Designs](moge_design.png)"]) + "\n")
    write_atomically(options.results / "moge_design.png", figure_to_png(draw(skewed, PANGU_PRO_MOE, title)))
    document = options.document.read_text(encoding="utf-8")
    write_atomically(options.document, replace_sections(document, tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
