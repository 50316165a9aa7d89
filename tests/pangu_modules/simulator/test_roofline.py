"""The roofline against hand-computed costs, the parameter count, and a simulation of random routing."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_modules.common.errors import UsageError
from pangu_modules.simulator.hardware import CARDS, Efficiency
from pangu_modules.simulator.layout import Layout, Workload
from pangu_modules.simulator.model_shape import DENSE_32B, PANGU_PRO_MOE, ModelShape
from pangu_modules.simulator.roofline import (
    Collective,
    Operator,
    Step,
    attention_costs,
    decode_step,
    dense_costs,
    distinct_experts,
    load_imbalance,
    prefill_step,
    seconds,
    sparse_costs,
    top_k_imbalance,
)
from pangu_modules.simulator.throughput import step_costs

BF16 = Workload(precision="bf16", kv_bits=16)
PEAK = Efficiency(matmul=1, attention=1, memory=1, link=1, operator_latency_us=0)
H100, A2 = CARDS["h100_sxm"], CARDS["ascend_800i_a2"]


@pytest.mark.parametrize("shape", [PANGU_PRO_MOE, DENSE_32B], ids=lambda shape: shape.name)
def test_flops_of_a_step_are_two_per_active_parameter_and_four_per_attended_key(shape: ModelShape) -> None:
    step = Step(sequences=3, new_tokens=1, attended=100, cached=100)
    costs = list(step_costs(shape, Layout(), BF16, step))
    flops = sum(count * cost.flops for count, cost in costs if isinstance(cost, Operator))
    vectors = (2 * shape.num_layers + 1) * shape.hidden_size + shape.vocab_size * shape.hidden_size  # norms, embedding
    width = shape.num_heads * shape.head_dim
    biases = width + 2 * shape.num_kv_heads * shape.head_dim
    biases += shape.hidden_size if shape.attention_bias == "all" else 0
    vectors += shape.num_layers * (biases + (shape.num_experts if shape.router_scale else 0))
    matrices = shape.parameters(active=True) - vectors
    keys = shape.num_layers * 4 * width * 100
    router = shape.sparse_layers * shape.num_experts * shape.hidden_size
    assert flops == pytest.approx(3 * (2 * matrices + keys), rel=1e-12)
    assert router < matrices / 100


def test_flops_do_not_depend_on_the_layout_but_bytes_and_links_do() -> None:
    step = decode_step(BF16, 64)
    layout = Layout(attention_dp=2, attention_tp=4, expert_tp=2, expert_ep=4, shared_tp=8)
    one, eight = (list(step_costs(PANGU_PRO_MOE, given, BF16, step)) for given in (Layout(), layout))
    flops = [sum(n * c.flops for n, c in costs if isinstance(c, Operator)) for costs in (one, eight)]
    assert flops[0] == pytest.approx(8 * flops[1], rel=1e-12)
    assert {c.ranks for _, c in eight if isinstance(c, Collective)} == {4, 8}
    assert {c.ranks for _, c in one if isinstance(c, Collective)} == {1}


def test_attention_by_hand() -> None:
    shape = PANGU_PRO_MOE
    costs = list(attention_costs(shape, Layout(attention_dp=2, attention_tp=4), Workload(), Step(6, 1, 50, 50)))
    norm, gather, qkv, rope, attention, output, scatter = costs
    assert isinstance(norm, Operator)
    assert norm.bytes == 4 * 3 * 5120 * 2 / 4  # three sequences per replica, rows divided over four devices
    assert gather == Collective("all_gather", 3 * 5120 * 2, 4)
    assert scatter == Collective("reduce_scatter", 3 * 5120 * 2, 4)
    width = (10 + 2 * 2) * 128  # ten query heads, two key and two value heads per device
    assert qkv == Operator("attention", 2 * 3 * 5120 * width, 5120 * width + 3 * (5120 + width) * 2)
    assert rope == Operator("attention", 0, 2 * 3 * width * 2 + 3 * 2 * 2 * 128)
    cache = 3 * 50 * 2 * 2 * 128  # one byte an element
    assert attention == Operator("attention", 4 * 3 * 1280 * 50, cache + 2 * 3 * 1280 * 2, "attention")
    assert output == Operator("attention", 2 * 3 * 1280 * 5120, 1280 * 5120 + 3 * (1280 + 5120) * 2)


def test_key_heads_are_replicated_beyond_their_number() -> None:
    shape = PANGU_PRO_MOE.derive(num_heads=64, num_kv_heads=2)
    costs = list(attention_costs(shape, Layout(attention_tp=8), BF16, Step(1, 1, 10, 10)))
    attention = next(cost for cost in costs if isinstance(cost, Operator) and cost.unit == "attention")
    assert attention.bytes == 10 * 2 * 1 * 128 * 2 + 2 * 8 * 128 * 2


def test_routed_experts_by_hand() -> None:
    layout = Layout(attention_dp=8, expert_tp=2, expert_ep=4, shared_tp=8)
    costs = list(sparse_costs(PANGU_PRO_MOE, layout, Workload(), Step(16, 1, 10, 10)))
    routed = [cost for cost in costs if isinstance(cost, Operator) and cost.part == "routed"]
    rows, width = 16 * 8 / 4, 672
    read = 64 * (1 - (7 / 8) ** 16) / 4
    weights, inner = read * 3 * 5120 * width, rows * width * 2
    assert [cost.flops for cost in routed] == [0, 4 * rows * 5120 * width, 0, 2 * rows * 5120 * width, 0]
    moved = 2 * rows * 5120 * 2
    expected = [moved, weights * 2 / 3 + moved / 2 + 2 * inner, 3 * inner, weights / 3 + moved / 2 + inner, moved]
    assert [cost.bytes for cost in routed] == pytest.approx(expected, rel=1e-12)
    shared = [cost for cost in costs if isinstance(cost, Operator) and cost.part == "shared"]
    assert sum(cost.flops for cost in shared) == 2 * 16 * 3 * 5120 * 5376 / 8
    assert [cost for cost in costs if isinstance(cost, Collective)] == [
        Collective("all_gather", 16 * 5120 * 2, 8),
        Collective("reduce_scatter", 16 * 5120 * 2, 8),
    ]


def test_all_to_all_sends_one_copy_to_each_device_a_token_visits() -> None:
    layout = Layout(attention_dp=8, expert_ep=8, shared_tp=4, dispatch="all_to_all")
    costs = list(sparse_costs(PANGU_PRO_MOE, layout, Workload(communication_bits=8), Step(16, 1, 10, 10)))
    exchange = Collective("all_to_all", 2 * 8 * 5120, 8)  # two tokens of its own, to eight devices, one byte each
    gathered = 8 * 5120  # the shared expert's group of four devices has eight tokens
    assert [cost for cost in costs if isinstance(cost, Collective)] == [
        exchange,
        Collective("all_gather", gathered, 4),
        exchange,
        Collective("reduce_scatter", gathered, 4),
    ]


def test_dense_layers_divide_tokens_among_replicas_of_the_mlp() -> None:
    costs = list(dense_costs(DENSE_32B, Layout(attention_tp=4, shared_tp=2), BF16, Step(8, 1, 10, 10)))
    flops = sum(cost.flops for cost in costs if isinstance(cost, Operator))
    assert flops == 2 * 4 * 3 * 5120 * 27648 / 2  # four of eight tokens, half of the width
    assert Collective("all_gather", 4 * 5120 * 2, 2) in costs


def test_time_is_the_longer_of_arithmetic_and_traffic() -> None:
    assert seconds(Operator("dense", 989e9, 1), H100, PEAK, "bf16") == pytest.approx(1e-3)
    assert seconds(Operator("dense", 1979e9, 1), H100, PEAK, "w8a8") == pytest.approx(1e-3)
    assert seconds(Operator("dense", 989e9, 1), H100, PEAK, "w8a16") == pytest.approx(1e-3)
    assert seconds(Operator("other", 989e9, 1, "16bit"), H100, PEAK, "w8a8") == pytest.approx(1e-3)
    assert seconds(Operator("dense", 1, 3350e6), H100, PEAK, "bf16") == pytest.approx(1e-3)
    half = Efficiency(matmul=0.5, attention=0.25, memory=0.5, operator_latency_us=7)
    assert seconds(Operator("dense", 989e9, 1), H100, half, "bf16") == pytest.approx(2e-3 + 7e-6)
    assert seconds(Operator("attention", 989e9, 1, "attention"), H100, half, "w8a8") == pytest.approx(4e-3 + 7e-6)
    assert seconds(Operator("dense", 1, 3350e6), H100, half, "bf16") == pytest.approx(2e-3 + 7e-6)
    with pytest.raises(UsageError, match="hardware mine has no tops_int8; use w8a16 or bf16"):
        seconds(Operator("dense", 1, 1), H100.derive(name="mine", tops_int8=None), PEAK, "w8a8")


def test_time_of_collectives() -> None:
    ring = Collective("all_gather", 8e6, 8)  # 7/8 of it over 450 GB/s, seven steps of 3 us
    assert seconds(ring, H100, PEAK, "bf16") == pytest.approx(7e6 / 450e9 + 21e-6)
    assert seconds(Collective("all_to_all", 8e6, 8), H100, PEAK, "bf16") == pytest.approx(7e6 / 450e9 + 3e-6)
    assert seconds(Collective("reduce_scatter", 8e6, 4), A2, PEAK, "bf16") == pytest.approx(6e6 / 84e9 + 10e-6)
    assert seconds(Collective("all_gather", 8e6, 1), H100, PEAK, "bf16") == 0
    hidden = Efficiency(link=0.5, overlap=0.75, operator_latency_us=2)
    assert seconds(ring, H100, hidden, "bf16") == pytest.approx((14e6 / 450e9 + 21e-6) / 4 + 2e-6)


def test_steps() -> None:
    workload = Workload(prompt_tokens=100, output_tokens=50, prefill_batch=3)
    assert prefill_step(workload, Layout()) == Step(3, 100, 50.5, 100)
    assert prefill_step(workload.derive(prefill_batch=None), Layout(attention_dp=4)).sequences == 4
    assert decode_step(workload, 7) == Step(7, 1, 125, 125)
    assert prefill_step(workload, Layout()).tokens == 300


def test_distinct_experts_against_drawing() -> None:
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):  # five tokens, each one expert of eight in each of eight groups
        picks = generator.integers(8, size=(5, 8))
        drawn.append(sum(len(set(picks[:, group])) for group in range(8)))
    spread = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(distinct_experts(PANGU_PRO_MOE, 5) - np.mean(drawn)) < 4 * spread
    assert distinct_experts(PANGU_PRO_MOE, 1) == pytest.approx(8)
    assert distinct_experts(PANGU_PRO_MOE, 10_000, voted=5) == 40


def simulated_imbalance(ranks: int, tokens: int, trials: int) -> tuple[float, float]:
    """Return the mean of max/mean of the loads under uniform top-8 of 64, and its standard error."""
    generator = np.random.default_rng(ranks * tokens)
    found = []
    for _ in range(trials):
        picks = generator.random((tokens, 64)).argsort(-1)[:, :8]
        loads = np.bincount(picks.ravel() // (64 // ranks), minlength=ranks)
        found.append(loads.max() / loads.mean())
    return float(np.mean(found)), float(np.std(found) / np.sqrt(trials))


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 16, 128])
def test_imbalance_of_a_top_k_router_against_drawing(ranks: int, tokens: int) -> None:
    mean, error = simulated_imbalance(ranks, tokens, 800)
    allowed = 0.11 if tokens == 1 else 0.02  # the normal approximation's error, stated in its docstring
    assert abs(top_k_imbalance(64, 8, ranks, tokens) - mean) < allowed + 3 * error


def test_a_skewed_router_stays_unbalanced() -> None:
    # Measured for N=32, K=8, 8 parts at 2048 tokens: 1.53 for a CV of expert loads of 0.69, 1.25 for 0.44.
    assert top_k_imbalance(32, 8, 8, 2048, 0.69) == pytest.approx(1.53, abs=0.02)
    assert top_k_imbalance(32, 8, 8, 2048, 0.44) == pytest.approx(1.25, abs=0.1)
    assert top_k_imbalance(32, 8, 8, 10**9) == pytest.approx(1, abs=1e-3)
    assert top_k_imbalance(16, 8, 8, 1, 10) == 2  # a part of two experts cannot have more than both


def test_a_grouped_router_is_balanced() -> None:
    step, layout = Step(3, 1, 10, 10), Layout(attention_dp=8, expert_ep=8)
    assert load_imbalance(PANGU_PRO_MOE, layout, Workload(expert_load_cv=1), step) == 1
    top_k = PANGU_PRO_MOE.derive(num_groups=1)
    assert load_imbalance(top_k, layout, Workload(), step) > 1.7
    assert load_imbalance(top_k, Layout(), Workload(), step) == 1
