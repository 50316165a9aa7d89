"""The design study: every (N, K, M, expert width, layout) of a parameter budget, its throughputs, and the Pareto front.

The roofline knows nothing about a model's quality, and speed alone asks for few, wide experts. So total and active
parameters are held near those of a base model, and the number of expert sets that a token can choose from is a third
objective beside prefill and decoding: finer routing has more of them. That is a count, not a measure of quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, PositiveInt, ValidationError

from pangu_modules.common.config import Config
from pangu_modules.common.errors import UsageError
from pangu_modules.simulator.hardware import Card, Efficiency
from pangu_modules.simulator.layout import Workload
from pangu_modules.simulator.model_shape import ModelShape
from pangu_modules.simulator.throughput import DEFAULT_EFFICIENCY, Estimate, rank_layouts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class DesignSpace(Config):
    """What the search varies; the rest of the model is the base's. Paper symbols in parentheses."""

    renamed = {"top_k": "num_experts_per_tok", "expert_intermediate": "moe_intermediate_size"}

    num_experts: tuple[PositiveInt, ...] = Field((16, 32, 64, 128, 256), description="Routed experts (N).")
    num_experts_per_tok: tuple[PositiveInt, ...] = Field((2, 4, 8, 16, 32), description="Experts per token (K).")
    num_groups: tuple[PositiveInt, ...] = Field((1, 2, 4, 8), description="Groups (M); 1 is an ordinary top-K router.")
    moe_intermediate_size: tuple[PositiveInt, ...] = Field(
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
    def objectives(self) -> tuple[float, float, float]:
        """What the Pareto front maximizes: prefill and decoding (tokens/s per card), and `expert_sets_log2`."""
        return self.estimate.prefill.tokens_per_s, self.estimate.decode.tokens_per_s, expert_sets_log2(self.shape)


def expert_sets_log2(shape: ModelShape) -> float:
    """Return the bits in a token's choice of experts: log2 of ``C(N/M, K/M)^M``."""
    groups = shape.num_groups
    return groups * math.log2(math.comb(shape.num_experts // groups, shape.num_experts_per_tok // groups))


def shapes(space: DesignSpace, base: ModelShape) -> Iterator[ModelShape]:
    """Yield the shapes of the space within the budget of `base`, whose active MLP width each keeps.

    The shared expert gets ``active width - K * I``, so that only the router and rounding change the active parameters.

    Raises:
        UsageError: the base has no routed experts.
    """
    if not base.num_experts:
        raise UsageError(f"design search: {base.name} has no routed experts to vary")
    active_width = base.num_experts_per_tok * base.moe_intermediate_size + base.shared_expert_intermediate_size
    options = product(space.num_experts, space.num_experts_per_tok, space.num_groups, space.moe_intermediate_size)
    for experts, chosen, groups, width in options:
        changes = {
            "name": f"N{experts} K{chosen} M{groups} I{width}",
            "num_experts": experts,
            "num_experts_per_tok": chosen,
            "num_groups": groups,
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": active_width - chosen * width,
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
    """Return the designs that no other surpasses in one objective without losing in another, by prefill."""
    values = np.array([design.objectives for design in designs])
    front = [
        design
        for design, own in zip(designs, values, strict=True)
        if not np.any(np.all(values >= own, axis=1) & np.any(values > own, axis=1))
    ]
    return sorted(front, key=lambda design: design.objectives)


def best_of_each_shape(designs: Sequence[Design]) -> list[Design]:
    """Return of each shape the layout with the fastest decoding, the fastest shape first."""
    best: dict[str, Design] = {}
    for design in designs:
        current = best.get(design.shape.name)
        if current is None or design.objectives[1] > current.objectives[1]:
            best[design.shape.name] = design
    return sorted(best.values(), key=lambda design: -design.objectives[1])


def design_rows(designs: Sequence[Design]) -> list[dict[str, Any]]:
    """Return rows of a table: the varied sizes, parameters, throughputs and the layout."""
    return [
        {
            "N": design.shape.num_experts,
            "K": design.shape.num_experts_per_tok,
            "M": design.shape.num_groups,
            "expert width": design.shape.moe_intermediate_size,
            "shared width": design.shape.shared_expert_intermediate_size,
            "expert sets (bits)": f"{design.objectives[2]:.1f}",
            "prefill": round(design.objectives[0]),
            "decode": round(design.objectives[1]),
            "layout": str(design.estimate.layout),
        }
        for design in designs
    ]


def draw(designs: Sequence[Design], base: ModelShape, title: str) -> Figure:
    """Draw prefill against decoding, colored by the third objective; ringed: the Pareto front, and the base's shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    prefill, decode, bits = np.array([design.objectives for design in designs]).T
    drawn = axes.scatter(prefill, decode, s=10, c=bits, cmap="viridis")
    figure.colorbar(drawn, label="expert sets a token can choose (bits)")
    _ring(axes, pareto_front(designs), "black", 36, "Pareto front")
    same = [design for design in designs if _same_design(design.shape, base)]
    _ring(axes, best_of_each_shape(same), "red", 90, base.name)
    axes.set_xlabel("prefill (tokens/s per card)")
    axes.set_ylabel("decoding (tokens/s per card)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _ring(axes: Axes, designs: Sequence[Design], color: str, size: float, label: str) -> None:
    if designs:
        prefill, decode, _ = np.array([design.objectives for design in designs]).T
        axes.scatter(prefill, decode, s=size, facecolors="none", edgecolors=color, linewidths=0.9, label=label)


def _same_design(shape: ModelShape, base: ModelShape) -> bool:
    fields = (
        "num_experts",
        "num_experts_per_tok",
        "num_groups",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
    )
    return all(getattr(shape, field) == getattr(base, field) for field in fields)
