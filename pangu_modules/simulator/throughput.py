"""Throughput of a model on a card: prefill and decoding in tokens per second and card, memory, and where time goes.

A roofline estimate (see `roofline`), without pipelining, scheduling gaps or sampling: an upper estimate rather than a
forecast. How far it is from the throughputs that the paper reports is written by
``python -m benchmarks.methods.moge.design``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pangu_modules.common.errors import UsageError
from pangu_modules.common.parameters import count_parameters
from pangu_modules.simulator.hardware import Card, Efficiency, find_card
from pangu_modules.simulator.layout import (
    Layout,
    Workload,
    efficiency_from,
    layout_from,
    layouts,
    parse_layout,
    workload_from,
)
from pangu_modules.simulator.memory import memory_bytes
from pangu_modules.simulator.model_shape import ModelShape, shape_of
from pangu_modules.simulator.roofline import (
    Collective,
    Operator,
    Step,
    attention_costs,
    decode_step,
    dense_costs,
    head_cost,
    prefill_step,
    seconds,
    sparse_costs,
)

if TYPE_CHECKING:
    from torch import nn

PARTS = ("attention", "routed", "shared", "dense", "links", "other")
DEFAULT_EFFICIENCY = Efficiency()
MOST_SEQUENCES = 1 << 20
PARAMETER_TOLERANCE = 0.02  # adapters and biases of unusual places are not in a ModelShape


@dataclass(frozen=True)
class Phase:
    """One kind of step on a layout.

    Args:
        sequences: sequences over all devices.
        seconds: duration of the step.
        tokens_per_s: tokens computed (prefill) or generated (decoding) per second and card.
        memory: bytes per device, by part.
        parts: seconds of the step, by part.
    """

    sequences: int
    seconds: float
    tokens_per_s: float
    memory: dict[str, float]
    parts: dict[str, float]

    @property
    def memory_gb(self) -> float:
        """Memory per device in GB (1e9 bytes)."""
        return sum(self.memory.values()) / 1e9


@dataclass(frozen=True)
class Estimate:
    """What a layout gives: prefill and decoding, each with the layout's devices to itself."""

    layout: Layout
    prefill: Phase
    decode: Phase


def simulate(
    shape: ModelShape,
    card: Card,
    layout: Layout,
    workload: Workload | None = None,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> Estimate:
    """Return prefill and decode throughput of a model on a card in a parallel layout.

    Raises:
        UsageError: the layout does not divide the model, does not fit in memory (the message says how much is
            missing), or no batch keeps the workload's longest step.
    """
    workload = workload or Workload()
    return Estimate(
        layout=layout,
        prefill=simulate_prefill(shape, card, layout, workload, efficiency),
        decode=simulate_decode(shape, card, layout, workload, efficiency),
    )


def simulate_prefill(
    shape: ModelShape,
    card: Card,
    layout: Layout,
    workload: Workload,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> Phase:
    """Return the throughput of computing prompts; raises as `simulate`."""
    layout.check(shape)
    phase = _phase(shape, card, layout, workload, prefill_step(workload, layout), efficiency)
    _check_memory("prefill", phase, shape, card, efficiency)
    return phase


def simulate_decode(
    shape: ModelShape,
    card: Card,
    layout: Layout,
    workload: Workload,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> Phase:
    """Return the throughput of decoding, at the workload's batch or the largest allowed; raises as `simulate`."""
    layout.check(shape)

    def phase(sequences: int) -> Phase:
        return _phase(shape, card, layout, workload, decode_step(workload, sequences), efficiency)

    if workload.decode_batch is not None:
        given = phase(workload.decode_batch)
        _check_memory("decode", given, shape, card, efficiency)
        return given
    least = phase(layout.attention_dp)
    _check_memory("decode", least, shape, card, efficiency)
    if 1e3 * least.seconds > workload.max_step_ms:
        raise UsageError(
            f"layout: decoding {least.sequences} sequences takes {1e3 * least.seconds:.1f} ms a step, more than "
            f"max_step_ms {workload.max_step_ms:g}; raise it, use more devices or a faster card"
        )

    def allowed(sequences: int) -> bool:
        tried = phase(sequences)
        in_memory = _missing_gb(tried, card, efficiency) <= 0
        return in_memory and 1e3 * tried.seconds <= workload.max_step_ms

    return phase(layout.attention_dp * _largest(lambda count: allowed(layout.attention_dp * count)))


def _largest(allowed: Callable[[int], bool]) -> int:
    """Return the largest count allowed, where 1 is and what is allowed is monotone."""
    low, high = 1, 2
    while high < MOST_SEQUENCES and allowed(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def step_costs(
    shape: ModelShape, layout: Layout, workload: Workload, step: Step
) -> Iterator[tuple[int, Operator | Collective]]:
    """Yield the costs of a whole step on the busiest device, each with how often it occurs."""
    for cost in attention_costs(shape, layout, workload, step):
        yield shape.num_layers, cost
    if shape.sparse_layers:
        for cost in sparse_costs(shape, layout, workload, step):
            yield shape.sparse_layers, cost
    if shape.num_layers > shape.sparse_layers:
        for cost in dense_costs(shape, layout, workload, step):
            yield shape.num_layers - shape.sparse_layers, cost
    yield 1, head_cost(shape, layout, step)


def _phase(
    shape: ModelShape, card: Card, layout: Layout, workload: Workload, step: Step, efficiency: Efficiency
) -> Phase:
    parts = dict.fromkeys(PARTS, 0.0)
    for count, cost in step_costs(shape, layout, workload, step):
        part = cost.part if isinstance(cost, Operator) else "links"
        parts[part] += count * seconds(cost, card, efficiency, workload.precision)
    total = sum(parts.values())
    cards = layout.devices / card.devices_per_card
    memory = memory_bytes(shape, layout, workload, step)
    return Phase(step.sequences, total, step.tokens / total / cards, memory, parts)


def _missing_gb(phase: Phase, card: Card, efficiency: Efficiency) -> float:
    return phase.memory_gb - card.memory_gb * efficiency.usable_memory


def _check_memory(name: str, phase: Phase, shape: ModelShape, card: Card, efficiency: Efficiency) -> None:
    missing = _missing_gb(phase, card, efficiency)
    if missing > 0:
        parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in phase.memory.items())
        usable = card.memory_gb * efficiency.usable_memory
        raise UsageError(
            f"layout: {name} of {shape.name} needs {phase.memory_gb:.1f} GB per device ({parts}), {missing:.1f} GB "
            f"more than the {usable:.1f} GB usable of {card.memory_gb:g} GB on {card.name}; "
            "use more devices, a smaller batch or fewer bits"
        )


def rank_layouts(
    shape: ModelShape,
    card: Card,
    devices: int,
    workload: Workload | None = None,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> list[Estimate]:
    """Return every layout of `devices` devices that fits, the fastest at decoding first.

    Raises:
        UsageError: none fits; the message is that of the last one tried.
    """
    workload = workload or Workload()
    estimates: list[Estimate] = []
    refusal = UsageError(f"layout: no layout of {devices} devices divides {shape.name}")
    for layout in layouts(shape, devices):
        try:
            estimates.append(simulate(shape, card, layout, workload, efficiency))
        except UsageError as error:
            refusal = error
    if not estimates:
        raise refusal
    return sorted(estimates, key=lambda estimate: -estimate.decode.tokens_per_s)


def plan_model(model: nn.Module, hardware: str, layout: str) -> list[dict[str, Any]]:
    """Return `plan_rows` of a transformers model (on any device, so also without storage).

    Raises:
        UsageError: as `plan_rows`, or the model is not of the equal layers that its configuration describes.
    """
    shape = shape_of(model.config, type(model).__name__)
    parameters = count_parameters(model)
    if abs(shape.parameters() / parameters - 1) > PARAMETER_TOLERANCE:
        raise UsageError(
            f"hardware: {shape.name} has {parameters:,} parameters, but layers of the sizes in its configuration have "
            f"{shape.parameters():,}; only decoders with gated MLPs and layers of equal sizes can be simulated"
        )
    return plan_rows(shape, hardware, layout)


def plan_rows(shape: ModelShape, hardware: str, layout: str, best: int = 5) -> list[dict[str, Any]]:
    """Return one row per layout for the ``plan`` command.

    Args:
        shape: the model's sizes.
        hardware: a card's name, or the path of a YAML file with the fields of `Card`.
        layout: ``key=value,...`` as `parse_layout` reads it; without any field of `Layout`, or with ``devices=N``, all
            layouts of a node (or of N devices) are tried and the `best` fastest returned.
        best: rows where all layouts are tried.

    Raises:
        UsageError: as `simulate`, `find_card` and `parse_layout`.
    """
    card, request = find_card(hardware), parse_layout(layout)
    workload, efficiency = workload_from(request.workload), efficiency_from(request.efficiency)
    if request.layout and request.devices is not None:
        raise UsageError(f"layout: give either devices={request.devices} or {', '.join(request.layout)}, not both")
    if request.layout:
        return _rows([simulate(shape, card, layout_from(request.layout), workload, efficiency)])
    return _rows(rank_layouts(shape, card, request.devices or card.devices_per_node, workload, efficiency)[:best])


def _rows(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Return a row per estimate, with names short enough for a terminal.

    ``prefill`` and ``decode`` are tokens/s per card, ``batch`` the sequences decoded at once, ``step_ms`` the time of a
    decoding step, ``first_ms`` that of a prefill, ``gb`` the memory per device, ``mostly`` the longest part of a step.
    """
    return [
        {
            "layout": str(estimate.layout),
            "prefill": estimate.prefill.tokens_per_s,
            "first_ms": 1e3 * estimate.prefill.seconds,
            "decode": estimate.decode.tokens_per_s,
            "batch": estimate.decode.sequences,
            "step_ms": 1e3 * estimate.decode.seconds,
            "gb": max(estimate.prefill.memory_gb, estimate.decode.memory_gb),
            "mostly": max(estimate.decode.parts, key=lambda part: estimate.decode.parts[part]),
        }
        for estimate in estimates
    ]
