"""The design study: every (N, K, M, expert width, layout) of a parameter budget, its throughputs, and the Pareto front.

The roofline knows nothing about a model's quality. So total and active parameters are held near those of a base model,
and what is searched is only which of the equally large models runs fastest on a card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, PositiveInt, ValidationError

from pangu_modules.config import Config
from pangu_modules.errors import UsageError
from pangu_modules.llm.moge.hardware import Card, Efficiency
from pangu_modules.llm.moge.layout import Workload
from pangu_modules.llm.moge.model_shape import ModelShape
from pangu_modules.llm.moge.simulator import DEFAULT_EFFICIENCY, Estimate, rank_layouts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DesignSpace(Config):
    """What the search varies; the rest of the model is the base's. Paper symbols in parentheses."""

    num_experts: tuple[PositiveInt, ...] = Field((16, 32, 64, 128, 256), description="Routed experts (N).")
    top_k: tuple[PositiveInt, ...] = Field((2, 4, 8, 16, 32), description="Experts per token (K).")
    num_groups: tuple[PositiveInt, ...] = Field((1, 2, 4, 8), description="Groups (M); 1 is an ordinary top-K router.")
    expert_intermediate: tuple[PositiveInt, ...] = Field(
        (336, 672, 1344, 2688, 5376), description="Width of a routed expert; the shared expert takes the active rest."
    )
    parameter_tolerance: float = Field(
        0.05, ge=0, description="Largest relative deviation of total and of active parameters from the base's."
    )
    devices: PositiveInt = Field(8, description="Devices of the layouts.")


@dataclass(frozen=True)
class Design:
    """A model shape in one layout, and what it gives there."""

    shape: ModelShape
    estimate: Estimate

    @property
    def throughputs(self) -> tuple[float, float]:
        """Prefill and decoding, tokens per second and card: what the Pareto front maximizes."""
        return self.estimate.prefill.tokens_per_s, self.estimate.decode.tokens_per_s


def shapes(space: DesignSpace, base: ModelShape) -> Iterator[ModelShape]:
    """Yield the shapes of the space within the budget of `base`, whose active MLP width each keeps.

    The shared expert gets ``active width - K * I``, so that only the router and rounding change the active parameters.

    Raises:
        UsageError: the base has no routed experts.
    """
    if not base.num_experts:
        raise UsageError(f"design search: {base.name} has no routed experts to vary")
    active_width = base.top_k * base.expert_intermediate + base.shared_intermediate
    options = product(space.num_experts, space.top_k, space.num_groups, space.expert_intermediate)
    for experts, top_k, groups, width in options:
        changes = {
            "name": f"N{experts} K{top_k} M{groups} I{width}",
            "num_experts": experts,
            "top_k": top_k,
            "num_groups": groups,
            "expert_intermediate": width,
            "shared_intermediate": active_width - top_k * width,
        }
        try:
            shape = base.derive(**changes)
        except ValidationError:  # N or K not divisible by M, or no width left for the shared expert
            continue
        if all(_deviation(shape, base, active) <= space.parameter_tolerance for active in (False, True)):
            yield shape


def _deviation(shape: ModelShape, base: ModelShape, active: bool) -> float:
    return abs(shape.parameters(active=active) / base.parameters(active=active) - 1)


def search(
    space: DesignSpace,
    base: ModelShape,
    card: Card,
    workload: Workload | None = None,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> list[Design]:
    """Return every design of the space in every layout that fits on the card.

    Raises:
        UsageError: nothing fits; the message is that of the last shape tried.
    """
    designs: list[Design] = []
    refusal = UsageError("design search: no shape of the space is within parameter_tolerance of the base")
    for shape in shapes(space, base):
        try:
            estimates = rank_layouts(shape, card, space.devices, workload, efficiency)
        except UsageError as error:
            refusal = error
            continue
        designs += [Design(shape, estimate) for estimate in estimates]
    if not designs:
        raise refusal
    return designs


def pareto_front(designs: Sequence[Design]) -> list[Design]:
    """Return the designs that no other surpasses in one throughput without losing in the other, by prefill."""
    values = np.array([design.throughputs for design in designs])
    front = [
        design
        for design, own in zip(designs, values, strict=True)
        if not np.any(np.all(values >= own, axis=1) & np.any(values > own, axis=1))
    ]
    return sorted(front, key=lambda design: design.throughputs)


def best_of_each_shape(designs: Sequence[Design]) -> list[Design]:
    """Return of each shape the layout with the fastest decoding, the fastest shape first."""
    best: dict[str, Design] = {}
    for design in designs:
        current = best.get(design.shape.name)
        if current is None or design.throughputs[1] > current.throughputs[1]:
            best[design.shape.name] = design
    return sorted(best.values(), key=lambda design: -design.throughputs[1])


def design_rows(designs: Sequence[Design]) -> list[dict[str, Any]]:
    """Return rows of a table: the varied sizes, parameters, throughputs and the layout."""
    return [
        {
            "N": design.shape.num_experts,
            "K": design.shape.top_k,
            "M": design.shape.num_groups,
            "expert width": design.shape.expert_intermediate,
            "shared width": design.shape.shared_intermediate,
            "parameters (B)": round(design.shape.parameters() / 1e9, 1),
            "prefill": round(design.throughputs[0]),
            "decode": round(design.throughputs[1]),
            "layout": str(design.estimate.layout),
        }
        for design in designs
    ]


def draw(designs: Sequence[Design], base: ModelShape, title: str) -> Figure:
    """Draw prefill against decoding: all designs by the number of experts, the Pareto front, and the base's shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for experts in sorted({design.shape.num_experts for design in designs}):
        points = np.array([design.throughputs for design in designs if design.shape.num_experts == experts])
        axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.5, label=f"N = {experts}")
    front = np.array([design.throughputs for design in pareto_front(designs)])
    axes.step(front[:, 0], front[:, 1], where="pre", color="black", linewidth=1.0, label="Pareto front")
    same = [design.throughputs for design in designs if _same_design(design.shape, base)]
    if same:
        points = np.array(same)
        axes.scatter(points[:, 0], points[:, 1], s=42, facecolors="none", edgecolors="red", label="the paper's design")
    axes.set_xlabel("prefill (tokens/s per card)")
    axes.set_ylabel("decoding (tokens/s per card)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _same_design(shape: ModelShape, base: ModelShape) -> bool:
    fields = ("num_experts", "top_k", "num_groups", "expert_intermediate", "shared_intermediate")
    return all(getattr(shape, field) == getattr(base, field) for field in fields)
