"""Roofline: what one decoder layer costs a device in FLOPs, bytes and communication, and how long that takes.

The time of an operator is the longer of its arithmetic and its memory traffic, plus a fixed start; collectives move
``(n-1)/n`` of their volume over the links. Operators run one after the other. No number here is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from pangu_modules.common.errors import UsageError
from pangu_modules.simulator.hardware import Card, Efficiency
from pangu_modules.simulator.layout import Layout, Workload
from pangu_modules.simulator.model_shape import ModelShape

ACTIVATION_BYTES = 2  # hidden states are 16-bit between operators in every precision


@dataclass(frozen=True)
class Operator:
    """Work of one kernel on the busiest device.

    Args:
        part: part of the layer: attention, routed, shared, dense, other.
        flops: floating-point operations (a multiply-add is two).
        bytes: memory read and written.
        unit: what computes it: matrix products at the layers' precision, at 16 bit, or fused attention.
    """

    part: str
    flops: float
    bytes: float
    unit: Literal["layer", "16bit", "attention"] = "layer"


@dataclass(frozen=True)
class Collective:
    """Communication among `ranks` devices; `bytes` is the gathered (or to be scattered) volume, or what one sends."""

    kind: Literal["all_gather", "reduce_scatter", "all_to_all"]
    bytes: float
    ranks: int


@dataclass(frozen=True)
class Step:
    """One forward pass: a prefill of whole prompts, or one token of every sequence.

    Args:
        sequences: sequences over all devices.
        new_tokens: tokens computed per sequence.
        attended: mean number of keys a query sees.
        cached: keys per sequence read from the cache.
    """

    sequences: int
    new_tokens: int
    attended: float
    cached: float

    @property
    def tokens(self) -> int:
        """Tokens computed over all devices."""
        return self.sequences * self.new_tokens


def prefill_step(workload: Workload, layout: Layout) -> Step:
    """Return the step that computes the prompts; causal attention sees half of them on average."""
    prompt = workload.prompt_tokens
    return Step(workload.prefill_batch or layout.attention_dp, prompt, attended=(prompt + 1) / 2, cached=prompt)


def decode_step(workload: Workload, sequences: int) -> Step:
    """Return a step of decoding in the middle of the outputs."""
    context = workload.prompt_tokens + workload.output_tokens / 2
    return Step(sequences, 1, attended=context, cached=context)


def attention_costs(
    shape: ModelShape, layout: Layout, workload: Workload, step: Step
) -> Iterator[Operator | Collective]:
    """Yield the costs of one layer's attention and of its norm, for a replica of `attention_tp` devices."""
    tp = layout.attention_tp
    sequences = math.ceil(step.sequences / layout.attention_dp)
    tokens = sequences * step.new_tokens
    hidden, dim = shape.hidden_size, shape.head_dim
    heads, kv_heads = shape.num_heads // tp, max(1, shape.num_kv_heads // tp)
    states = tokens * hidden * ACTIVATION_BYTES
    yield Operator("other", 0, 4 * states / tp)  # norm and residual: two reads, two writes of this device's rows
    yield Collective("all_gather", tokens * hidden * workload.communication_bits / 8, tp)
    width = (heads + 2 * kv_heads) * dim
    yield _linear("attention", tokens, hidden, width, workload)
    new_keys = 2 * kv_heads * dim * tokens
    yield Operator("attention", 0, 2 * tokens * width * ACTIVATION_BYTES + new_keys * workload.kv_bits / 8)  # RoPE
    cache_bytes = sequences * step.cached * 2 * kv_heads * dim * workload.kv_bits / 8
    queries = 2 * tokens * heads * dim * ACTIVATION_BYTES
    yield Operator("attention", 4 * tokens * heads * dim * step.attended, cache_bytes + queries, "attention")
    yield _linear("attention", tokens, heads * dim, hidden, workload)
    yield Collective("reduce_scatter", tokens * hidden * workload.communication_bits / 8, tp)


def dense_costs(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> Iterator[Operator | Collective]:
    """Yield the costs of one dense layer's MLP and its norm."""
    tokens = math.ceil(step.tokens * layout.shared_tp / layout.devices)
    volume = tokens * shape.hidden_size * workload.communication_bits / 8
    yield _norm(shape, layout, step)
    yield Collective("all_gather", volume, layout.shared_tp)
    yield from _mlp("dense", tokens, shape.hidden_size, shape.intermediate_size, layout.shared_tp, workload)
    yield Collective("reduce_scatter", volume, layout.shared_tp)


def sparse_costs(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> Iterator[Operator | Collective]:
    """Yield the costs of one sparse layer's MLPs on the busiest device: norm, router, routed experts, shared expert."""
    hidden, devices = shape.hidden_size, layout.devices
    element = workload.communication_bits / 8
    shared_tokens = math.ceil(step.tokens * layout.shared_tp / devices)
    own_rows = step.tokens / devices
    yield _norm(shape, layout, step)
    yield Operator("other", 2 * own_rows * hidden * shape.num_experts, 2 * hidden * shape.num_experts, "16bit")
    if layout.dispatch == "all_gather":
        moved = [Collective("all_gather", step.tokens * hidden * element, devices)]
        back = [Collective("reduce_scatter", step.tokens * hidden * element, devices)]
    else:
        # One copy per device that the token visits.
        copies = min(shape.num_experts_per_tok, layout.expert_ep) * layout.expert_tp
        sent = own_rows * copies * hidden * element * load_imbalance(shape, layout, workload, step)
        gathered = shared_tokens * hidden * element if shape.shared_expert_intermediate_size else 0.0
        exchange, tp = Collective("all_to_all", sent, devices), layout.shared_tp
        moved = [exchange, Collective("all_gather", gathered, tp)]
        back = [exchange, Collective("reduce_scatter", gathered, tp)]
    yield from moved
    yield from _routed(shape, layout, workload, step)
    if shape.shared_expert_intermediate_size:
        yield from _mlp(
            "shared", shared_tokens, hidden, shape.shared_expert_intermediate_size, layout.shared_tp, workload
        )
    yield from back


def _routed(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> Iterator[Operator]:
    """Yield the busiest device's routed experts: gather rows, two grouped matrix products, activation, combine."""
    imbalance = load_imbalance(shape, layout, workload, step)
    rows = imbalance * step.tokens * shape.num_experts_per_tok / layout.expert_ep
    width = shape.moe_intermediate_size / layout.expert_tp
    local = shape.num_experts / layout.expert_ep
    voted = workload.voted_experts if step.new_tokens == 1 else None
    read = min(local, imbalance * distinct_experts(shape, step.tokens, voted) / layout.expert_ep)
    hidden = shape.hidden_size
    weights = read * 3 * hidden * width * workload.weight_bytes
    moved = 2 * rows * hidden * ACTIVATION_BYTES
    yield Operator("routed", 0, moved)
    inner = rows * width * ACTIVATION_BYTES
    yield Operator("routed", 4 * rows * hidden * width, weights * 2 / 3 + moved / 2 + 2 * inner)
    yield Operator("routed", 0, 3 * inner)
    yield Operator("routed", 2 * rows * width * hidden, weights / 3 + moved / 2 + inner)
    yield Operator("routed", 0, moved)


def _mlp(part: str, tokens: float, hidden: int, width: int, tp: int, workload: Workload) -> Iterator[Operator]:
    inner = width / tp
    yield _linear(part, tokens, hidden, 2 * inner, workload)
    yield Operator(part, 0, 3 * tokens * inner * ACTIVATION_BYTES)
    yield _linear(part, tokens, inner, hidden, workload)


def _linear(part: str, tokens: float, inputs: float, outputs: float, workload: Workload) -> Operator:
    traffic = inputs * outputs * workload.weight_bytes + tokens * (inputs + outputs) * ACTIVATION_BYTES
    return Operator(part, 2 * tokens * inputs * outputs, traffic)


def _norm(shape: ModelShape, layout: Layout, step: Step) -> Operator:
    return Operator("other", 0, 4 * step.tokens / layout.devices * shape.hidden_size * ACTIVATION_BYTES)


def head_cost(shape: ModelShape, layout: Layout, step: Step) -> Operator:
    """Return the cost of the logits of each sequence's last token, in 16 bit, divided over `attention_tp`."""
    sequences = math.ceil(step.sequences / layout.attention_dp)
    rows = shape.vocab_size / layout.attention_tp
    traffic = (rows * shape.hidden_size + sequences * (shape.hidden_size + rows)) * ACTIVATION_BYTES
    return Operator("other", 2 * sequences * shape.hidden_size * rows, traffic, "16bit")


def distinct_experts(shape: ModelShape, tokens: int, voted: int | None = None) -> float:
    """Return how many experts of a layer `tokens` tokens use, on average, if experts of a group are equally likely.

    ``N * (1 - (1 - K/N)^T)``: within a group the chance of a pick is K'/Ng = K/N. `voted` bounds the experts per group.
    """
    used = shape.num_experts * (1 - (1 - shape.num_experts_per_tok / shape.num_experts) ** tokens)
    return used if voted is None else min(used, voted * shape.num_groups)


def load_imbalance(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> float:
    """Return the expected load of the busiest expert-parallel part over the mean: 1 for a grouped router.

    An ordinary top-K router is taken as uniform (its best case), with the lasting skew ``workload.expert_load_cv``.
    """
    if layout.expert_ep == 1 or shape.num_groups > 1:
        return 1.0
    return top_k_imbalance(
        shape.num_experts, shape.num_experts_per_tok, layout.expert_ep, step.tokens, workload.expert_load_cv
    )


def top_k_imbalance(
    num_experts: int, num_experts_per_tok: int, ranks: int, tokens: int, expert_load_cv: float = 0.0
) -> float:
    """Return E[max/mean] of the loads of `ranks` equal parts under a random top-K router.

    Loads of one token are hypergeometric; their sum over tokens is taken as normal, so that the maximum is that of
    exchangeable normals with a fixed sum. Within 0.02 of simulation from 16 tokens on, 0.1 too low for a single one.
    A skew of experts adds ``cv / sqrt(experts per part)``, which no number of tokens averages out.
    """
    share = 1 / ranks
    variance = num_experts_per_tok * share * (1 - share) * (num_experts - num_experts_per_tok) / max(1, num_experts - 1)
    relative = variance * tokens / (tokens * num_experts_per_tok * share) ** 2 + expert_load_cv**2 * ranks / num_experts
    largest = 1 + math.sqrt(relative * ranks / (ranks - 1)) * _largest_of_normals(ranks)
    return min(largest, ranks, max(1.0, num_experts / num_experts_per_tok))


@cache
def _largest_of_normals(count: int) -> float:
    """Return the expected maximum of `count` standard normals: the integral of x d(Phi(x)^count)."""
    grid = np.linspace(-9.0, 9.0, 3601)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in grid])
    return float(np.sum(grid * count * density * below ** (count - 1)) * (grid[1] - grid[0]))


def seconds(cost: Operator | Collective, card: Card, efficiency: Efficiency, precision: str) -> float:
    """Return how long an operator or a collective takes on a device.

    Raises:
        UsageError: the card has no peak for this precision, or no network figure for a group that spans nodes.
    """
    if isinstance(cost, Collective):
        return _collective_seconds(cost, card, efficiency)
    rate = 1e12 * card.tflops_16bit * efficiency.matmul
    if cost.unit == "attention":
        rate = 1e12 * card.tflops_16bit * efficiency.attention
    elif cost.unit == "layer" and precision == "w8a8":
        if card.tops_int8 is None:
            raise UsageError(f"layout: precision w8a8: hardware {card.name} has no tops_int8; use w8a16 or bf16")
        rate = 1e12 * card.tops_int8 * efficiency.matmul
    memory = cost.bytes / (1e9 * card.memory_gb_per_s * efficiency.memory)
    return max(cost.flops / rate, memory) + 1e-6 * efficiency.operator_latency_us


def _collective_seconds(cost: Collective, card: Card, efficiency: Efficiency) -> float:
    """Rings take n-1 steps over a switch; on a mesh, and in an all-to-all, all peers are served at once."""
    if cost.ranks == 1:
        return 0.0
    steps = 1 if card.topology == "mesh" or cost.kind == "all_to_all" else cost.ranks - 1
    moved = cost.bytes * (cost.ranks - 1) / cost.ranks
    transfer = moved / (card.group_bytes_per_s(cost.ranks) * efficiency.link)
    exposed = (1 - efficiency.overlap) * (transfer + 1e-6 * card.link_latency_us * steps)
    return exposed + 1e-6 * efficiency.operator_latency_us
