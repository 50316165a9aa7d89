"""The simulator: memory and throughput by hand, the largest batch, and the `plan` command."""

from __future__ import annotations

import json
import math
import sys

import pytest
from tiny_llm import TINY_LLAMA
from tiny_text import TokenBatches
from toys import ToyData, ToyModule

from pangu_modules import CausalLM, Recipe
from pangu_modules.common.errors import UsageError
from pangu_modules.engine.cli import main
from pangu_modules.simulator.hardware import CARDS, Efficiency
from pangu_modules.simulator.layout import Layout, Workload
from pangu_modules.simulator.memory import memory_bytes
from pangu_modules.simulator.model_shape import DENSE_32B, DENSE_72B, PANGU_PRO_MOE, ModelShape
from pangu_modules.simulator.roofline import decode_step, prefill_step
from pangu_modules.simulator.throughput import plan_rows, rank_layouts, simulate, simulate_decode

A2, DUO, L40S = CARDS["ascend_800i_a2"], CARDS["ascend_300i_duo"], CARDS["l40s"]
EIGHT = Layout(attention_dp=2, attention_tp=4, expert_tp=2, expert_ep=4, shared_tp=8)
PEAK = Efficiency(matmul=1, attention=1, memory=1, link=1, operator_latency_us=0)
TINY = ModelShape(
    name="tiny",
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=128,
    intermediate_size=256,
)


def test_memory_by_hand() -> None:
    workload = Workload(prompt_tokens=1000, output_tokens=500)
    parts = memory_bytes(PANGU_PRO_MOE, EIGHT, workload, decode_step(workload, 6))
    attention = 5120 * 128 * (2 * 10 + 2 * 2)  # q and o of ten heads, k and v of two
    mlps = 64 * 3 * 5120 * 1344 / 8 + 3 * 5120 * 5376 / 8
    in_16_bit = 2 * 153376 * 5120 / 4 + 48 * 64 * 5120
    assert parts["weights"] == 48 * (attention + mlps) + 2 * in_16_bit
    assert parts["cache"] == 3 * 1500 * 2 * 48 * 2 * 128
    rows = 6 * 8 / 4
    assert parts["activations"] == 2 * (3 * 6 * 5120 + rows * (2 * 5120 + 3 * 672))
    prompts = workload.derive(prefill_batch=4)
    cached = memory_bytes(PANGU_PRO_MOE, EIGHT, prompts, prefill_step(prompts, EIGHT))["cache"]
    assert cached == 2 * 1000 * 2 * 48 * 2 * 128


def test_weights_in_other_precisions() -> None:
    sizes = {}
    for precision in ("bf16", "w8a16", "w4a16"):
        workload = Workload.model_validate({"precision": precision, "kv_bits": 16})
        sizes[precision] = memory_bytes(PANGU_PRO_MOE, Layout(), workload, decode_step(workload, 1))["weights"]
    # All 72B in two bytes, less norms, biases and router_scale, which are not counted.
    assert sizes["bf16"] == pytest.approx(2 * 71_988_781_056, rel=1e-4)
    assert sizes["bf16"] - sizes["w8a16"] == pytest.approx(2 * (sizes["w8a16"] - sizes["w4a16"]))


def test_decoding_a_dense_model_reads_its_weights_once() -> None:
    workload = Workload(precision="bf16", kv_bits=16, prompt_tokens=1, output_tokens=2, decode_batch=1)
    card = A2.derive(memory_gb_per_s=1000)
    phase = simulate_decode(DENSE_32B, card.derive(memory_gb=100), Layout(), workload, PEAK)
    weights = 2 * (DENSE_32B.parameters() - DENSE_32B.embedding_parameters / 2)  # of the embedding one row is read
    assert phase.seconds == pytest.approx(weights / 1e12, rel=0.01)  # activations of one token are under a percent
    assert phase.tokens_per_s == pytest.approx(1e12 / weights, rel=0.01)


def test_prefill_of_a_dense_model_is_bound_by_its_flops() -> None:
    workload = Workload(precision="bf16", kv_bits=16, prompt_tokens=8192, output_tokens=1, prefill_batch=1)
    phase = simulate(DENSE_32B, A2.derive(memory_gb=200, memory_gb_per_s=1e6), Layout(), workload, PEAK).prefill
    matrices = DENSE_32B.parameters() - DENSE_32B.embedding_parameters
    flops = 8192 * (2 * matrices + 64 * 4 * 5120 * 8193 / 2)
    assert phase.seconds == pytest.approx(flops / 280e12, rel=0.01)
    assert phase.tokens_per_s == pytest.approx(8192 / phase.seconds)


def test_throughput_is_per_card_of_two_devices() -> None:
    workload = Workload(decode_batch=8)
    duo = simulate_decode(PANGU_PRO_MOE, DUO, EIGHT, workload)
    assert duo.tokens_per_s == pytest.approx(8 / duo.seconds / 4)
    assert duo.sequences == 8
    assert sum(duo.parts.values()) == pytest.approx(duo.seconds)


def test_the_largest_batch_is_the_largest_allowed() -> None:
    shape, layout = TINY, Layout(attention_dp=2, shared_tp=2)
    card = L40S.derive(memory_gb=0.02)
    for workload in (Workload(), Workload(max_step_ms=0.195), Workload(max_step_ms=0.2, output_tokens=10)):
        found = simulate_decode(shape, card, layout, workload)
        counts = range(2, 4 * found.sequences, 2)
        allowed = [batch for batch in counts if _allowed(shape, card.memory_gb, layout, workload, batch)]
        assert found.sequences == max(allowed)
        assert allowed == list(counts[: len(allowed)])


def _allowed(shape: ModelShape, memory_gb: float, layout: Layout, workload: Workload, batch: int) -> bool:
    phase = simulate_decode(shape, L40S, layout, workload.derive(decode_batch=batch))
    return phase.memory_gb <= 0.9 * memory_gb and 1e3 * phase.seconds <= workload.max_step_ms


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    bf16 = Workload(precision="bf16", kv_bits=16)
    with pytest.raises(UsageError) as refused:
        simulate(DENSE_72B, A2, Layout(attention_tp=2, shared_tp=2), bf16)
    message = str(refused.value)
    assert "prefill of dense 72B (Qwen2.5-72B) needs " in message
    phase = memory_bytes(DENSE_72B, Layout(attention_tp=2, shared_tp=2), bf16, prefill_step(bf16, Layout()))
    missing = sum(phase.values()) / 1e9 - 0.9 * 64
    assert f"{missing:.1f} GB more than the 57.6 GB usable of 64 GB on ascend_800i_a2; use more devices" in message
    with pytest.raises(UsageError, match=r"decode of Pangu .* needs \d+"):
        simulate(PANGU_PRO_MOE, A2, EIGHT, Workload(decode_batch=5000))


def test_a_step_longer_than_allowed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"decoding 2 sequences takes \d+\.\d ms a step, more than max_step_ms 5;"):
        simulate_decode(PANGU_PRO_MOE, A2, EIGHT, Workload(max_step_ms=5))


def test_balance_makes_the_grouped_router_faster_than_a_skewed_top_k() -> None:
    layout = Layout(attention_dp=8, expert_ep=8, shared_tp=8)
    top_k = PANGU_PRO_MOE.derive(num_groups=1)
    for cv in (0.0, 0.44):
        workload = Workload(decode_batch=512, expert_load_cv=cv)
        grouped, ordinary = (simulate(shape, A2, layout, workload) for shape in (PANGU_PRO_MOE, top_k))
        assert grouped.prefill.tokens_per_s > ordinary.prefill.tokens_per_s
        assert grouped.decode.tokens_per_s > ordinary.decode.tokens_per_s


def test_ranked_layouts_are_all_that_fit_fastest_first() -> None:
    ranked = rank_layouts(PANGU_PRO_MOE, A2, 4, Workload(decode_batch=64))
    speeds = [estimate.decode.tokens_per_s for estimate in ranked]
    assert speeds == sorted(speeds, reverse=True)
    assert len(ranked) == 27
    with pytest.raises(UsageError, match="GB more than"):
        rank_layouts(PANGU_PRO_MOE, A2, 1)
    with pytest.raises(UsageError, match="no layout of 3 devices divides tiny"):
        rank_layouts(TINY.derive(num_experts=5, num_experts_per_tok=1, moe_intermediate_size=7), A2, 3)


def test_rows_of_a_plan() -> None:
    (row,) = plan_rows(PANGU_PRO_MOE, "ascend_800i_a2", f"{EIGHT},decode_batch=64")
    estimate = simulate(PANGU_PRO_MOE, A2, EIGHT, Workload(decode_batch=64))
    assert row["layout"] == str(EIGHT)
    assert row["decode"] == estimate.decode.tokens_per_s
    assert row["batch"] == 64
    assert row["gb"] == max(estimate.prefill.memory_gb, estimate.decode.memory_gb)
    assert row["first_ms"] == 1e3 * estimate.prefill.seconds
    assert estimate.decode.parts[row["mostly"]] == max(estimate.decode.parts.values())
    assert len(plan_rows(PANGU_PRO_MOE, "ascend_800i_a2", "devices=4,decode_batch=64")) == 5
    (slower,) = plan_rows(PANGU_PRO_MOE, "ascend_800i_a2", f"{EIGHT},decode_batch=64,efficiency.memory=0.4")
    assert 0.5 < slower["decode"] / row["decode"] < 0.9
    with pytest.raises(UsageError, match=r"give either devices=4 or attention_tp, not both"):
        plan_rows(PANGU_PRO_MOE, "ascend_800i_a2", "devices=4,attention_tp=4")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    return Recipe(module=CausalLM.Config(architecture="llama", model_args=TINY_LLAMA), data=TokenBatches.Config())


def test_plan_on_hardware(tiny: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--hardware", "l40s", "--layout", "attention_tp=2,shared_tp=2,precision=bf16"]
    main(tiny, [*words, "--json"])
    (row,) = json.loads(capsys.readouterr().out)["throughput"]
    assert row["layout"] == "attention_tp=2, shared_tp=2"
    assert math.isfinite(row["prefill"])
    main(tiny, words)
    assert "Upper estimate per card: l40s" in capsys.readouterr().out
    main(tiny, ["plan", "--json"])
    assert "throughput" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hardware", "l40"], "unknown card 'l40'. Did you mean 'l40s'?"),
        (["--layout", "attention_tp=2"], "--layout: give the card too, with --hardware"),
        (["--hardware", "l40s", "--layout", "attention_tp=3"], "attention_tp 3 must divide num_heads 4: [1, 2, 4]"),
    ],
)
def test_bad_input_of_plan(tiny: Recipe, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(tiny, ["plan", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_models_without_an_estimate_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit):
        main(Recipe(module=ToyModule.Config(), data=ToyData.Config()), ["plan", "--hardware", "l40s"])
    assert "there is no estimate of throughput for ToyModule" in capsys.readouterr().err
    fields = {name: value for name, value in TINY_LLAMA.items() if name != "num_key_value_heads"}
    gpt = CausalLM.Config(architecture="gpt_neox", model_args=fields)
    with pytest.raises(SystemExit):
        main(Recipe(module=gpt, data=TokenBatches.Config()), ["plan", "--hardware", "l40s"])
    assert "only decoders with gated MLPs and layers of equal sizes can be simulated" in capsys.readouterr().err


def test_a_module_may_bring_its_own_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(ToyModule):
        def plan_on_hardware(self, hardware: str, layout: str) -> list[dict[str, str]]:
            return [{"card": hardware, "given": layout}]

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    main(Recipe(module=Own.Config(), data=ToyData.Config()), ["plan", "--json", "--hardware", "abacus"])
    assert json.loads(capsys.readouterr().out)["throughput"] == [{"card": "abacus", "given": "auto"}]
