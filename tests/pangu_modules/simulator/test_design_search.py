"""The design search: the budget is kept, the front is the front, the figure shows it."""

from __future__ import annotations

import math
from itertools import product

import pytest

from pangu_modules.common.errors import UsageError
from pangu_modules.report.run_report import figure_to_png
from pangu_modules.simulator.design_search import (
    DesignSpace,
    best_of_each_shape,
    design_rows,
    draw,
    expert_sets_log2,
    pareto_front,
    search,
    shapes,
)
from pangu_modules.simulator.hardware import CARDS
from pangu_modules.simulator.layout import Workload
from pangu_modules.simulator.model_shape import DENSE_32B, PANGU_PRO_MOE

A2 = CARDS["ascend_800i_a2"]
SPACE = DesignSpace(
    num_experts=(32, 64), num_experts_per_tok=(4, 8), num_groups=(1, 4), moe_intermediate_size=(1344, 2688), devices=4
)
WORKLOAD = Workload(decode_batch=64)


def test_shapes_keep_the_budget() -> None:
    found = list(shapes(DesignSpace(parameter_tolerance=0.02), PANGU_PRO_MOE))
    names = {shape.name for shape in found}
    assert "N64 K8 M8 I1344" in names
    assert "N64 K8 M1 I1344" in names
    assert "N64 K4 M8 I1344" not in names  # K is not divisible by M
    for shape in found:
        assert (
            shape.num_experts_per_tok * shape.moe_intermediate_size + shape.shared_expert_intermediate_size
            == 8 * 1344 + 5376
        )
        for active in (False, True):
            budget = PANGU_PRO_MOE.parameters(active=active)
            assert abs(shape.parameters(active=active) - budget) <= 0.02 * budget
    wide = DesignSpace(num_experts=(64,), num_experts_per_tok=(16,), num_groups=(1,), moe_intermediate_size=(1344,))
    assert not list(shapes(wide, PANGU_PRO_MOE))  # 16 * 1344 is more than the active width


def test_choices_of_a_token() -> None:
    assert expert_sets_log2(PANGU_PRO_MOE) == 24  # one of eight, eight times
    assert expert_sets_log2(PANGU_PRO_MOE.derive(num_groups=1)) == pytest.approx(math.log2(4_426_165_368))


def test_front_against_loops() -> None:
    designs = search(SPACE, PANGU_PRO_MOE, A2, WORKLOAD)
    assert len({design.shape.name for design in designs}) == len(list(shapes(SPACE, PANGU_PRO_MOE))) == 4
    front = pareto_front(designs)
    beaten = set()
    for one, other in product(designs, designs):
        pairs = list(zip(one.objectives, other.objectives, strict=True))
        if all(b >= a for a, b in pairs) and any(b > a for a, b in pairs):
            beaten.add(id(one))
    assert {id(design) for design in front} == {id(design) for design in designs} - beaten
    assert 0 < len(front) < len(designs)


def test_best_rows_and_figure() -> None:
    designs = search(SPACE, PANGU_PRO_MOE, A2, WORKLOAD)
    best = best_of_each_shape(designs)
    assert [design.objectives[1] for design in best] == sorted((d.objectives[1] for d in best), reverse=True)
    for design in best:
        same = [other.objectives[1] for other in designs if other.shape == design.shape]
        assert design.objectives[1] == max(same)
    rows = design_rows(best)
    assert {(row["N"], row["K"], row["M"]) for row in rows} == {(64, 8, 1), (64, 8, 4), (32, 4, 1), (32, 4, 4)}
    figure = draw(designs, PANGU_PRO_MOE.derive(num_groups=4), "tiny")
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == ["Pareto front", PANGU_PRO_MOE.name]
    assert figure_to_png(figure).startswith(b"\x89PNG")


def test_what_cannot_be_searched() -> None:
    with pytest.raises(UsageError, match="has no routed experts to vary"):
        search(SPACE, DENSE_32B, A2)
    none = DesignSpace(num_experts=(8,), moe_intermediate_size=(1344,))
    with pytest.raises(UsageError, match="no shape of the space is within parameter_tolerance"):
        search(none, PANGU_PRO_MOE, A2)
    with pytest.raises(UsageError, match="GB more than"):
        search(SPACE.derive(devices=1), PANGU_PRO_MOE, A2)
