"""The fast paths equal a loop over tokens, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pangu_modules.llm.moge import grouped_matmul as grouped_matmul_module
from pangu_modules.llm.moge.experts import GroupedExperts, experts_forward
from pangu_modules.llm.moge.grouped_matmul import ExpertsImplementation, grouped_matmul
from pangu_modules.llm.moge.routing import route_moge
from pangu_modules.llm.moge.rows import sort_rows

FAST: list[ExpertsImplementation] = ["auto", "loop", "grouped_mm"]
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(num_tokens: int = 9, hidden: int = 16, inner: int = 8, dtype: torch.dtype = torch.float32) -> Case:
    """Tokens, ids (8 experts in 4 groups, one never chosen), gates and the two weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_tokens, 8, generator=generator, dtype=torch.float64)
    logits[:, 3] = -30
    routing = route_moge(logits, 4, 4)
    x = torch.randn(num_tokens, hidden, generator=generator, dtype=torch.float64)
    gate_up = torch.randn(8, 2 * inner, hidden, generator=generator, dtype=torch.float64) * 0.3
    down = torch.randn(8, hidden, inner, generator=generator, dtype=torch.float64) * 0.3
    return x.to(dtype), routing.expert_ids, routing.weights.to(dtype), gate_up.to(dtype), down.to(dtype)


def one_at_a_time(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for token, row_ids, row_weights in zip(x, ids.tolist(), weights, strict=True):
        total = torch.zeros_like(token)
        for expert, weight in zip(row_ids, row_weights, strict=True):
            gate, up = gate_up[expert][: down.shape[2]] @ token, gate_up[expert][down.shape[2] :] @ token
            total = total + weight * (down[expert] @ (gate / (1 + torch.exp(-gate)) * up))
        rows.append(total)
    return torch.stack(rows) if rows else x


def gradients(function: object, inputs: Case, **options: object) -> list[Tensor]:
    x, ids, weights, gate_up, down = inputs
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weights, gate_up, down)]
    output = function(leaves[0], ids, leaves[1], leaves[2], leaves[3], **options)  # type: ignore[operator]
    factors = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * factors).sum(), leaves)]


@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("implementation", ["reference", "loop", "auto"])
def test_equals_one_token_at_a_time(implementation: ExpertsImplementation, num_groups: int) -> None:
    inputs = case(dtype=torch.float64)
    want = gradients(one_at_a_time, inputs)
    got = gradients(experts_forward, inputs, implementation=implementation, num_groups=num_groups)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-14)  # values to 7; seen 3e-15


@pytest.mark.parametrize(("hidden", "inner"), [(16, 8), (10, 6)])
@pytest.mark.parametrize("implementation", ["auto", "grouped_mm"])
def test_grouped_mm_equals_the_reference(implementation: ExpertsImplementation, hidden: int, inner: int) -> None:
    """In float32, and of sizes that grouped_mm does not take (10 and 6), where auto falls back to a loop."""
    inputs = case(hidden=hidden, inner=inner)
    if implementation == "grouped_mm" and hidden % 8:
        with pytest.raises(ValueError, match=r"divisible by 8 .* got 10, 6 .* take 'auto'"):
            experts_forward(*inputs, implementation=implementation)
        return
    want = gradients(experts_forward, inputs, implementation="reference")
    got = gradients(experts_forward, inputs, implementation=implementation, num_groups=4)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)  # values to 7; seen 1.4e-6


def test_gradcheck() -> None:
    x, ids, weights, gate_up, down = case(5, 4, 3, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, weights, gate_up, down)]

    def function(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return experts_forward(x, ids, weights, gate_up, down, num_groups=4)

    assert torch.autograd.gradcheck(function, leaves)


def test_only_the_reference_can_be_differentiated_twice() -> None:
    x, ids, weights, gate_up, down = case(5, 4, 3, torch.float64)
    x.requires_grad_()
    for implementation in ("reference", "loop"):
        output = experts_forward(x, ids, weights, gate_up, down, implementation=implementation)
        (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        if implementation == "reference":
            assert torch.autograd.grad(grad.square().sum(), x)[0].abs().max() > 0
        else:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                grad.square().sum().backward()


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_no_token(implementation: ExpertsImplementation) -> None:
    output, *grads = gradients(experts_forward, case(0), implementation=implementation, num_groups=4)
    assert output.shape == (0, 16)
    assert all(not grad.any() for grad in grads)


def test_inference_equals_training() -> None:
    x, ids, weights, gate_up, down = case()
    with torch.no_grad():
        inference = experts_forward(x, ids, weights, gate_up, down, num_groups=4)
    training = experts_forward(x, ids, weights, gate_up.requires_grad_(), down, num_groups=4)
    assert torch.equal(inference, training)


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_is_near_float32(implementation: ExpertsImplementation) -> None:
    x, ids, weights, gate_up, down = case(40)
    want = gradients(experts_forward, (x, ids, weights, gate_up, down), implementation="reference")
    low = (x.bfloat16(), ids, weights, gate_up.bfloat16(), down.bfloat16())
    got = gradients(experts_forward, low, implementation=implementation, num_groups=4)
    assert got[0].dtype == torch.bfloat16
    for a, b in zip(got, want, strict=True):
        assert ((a.float() - b).norm() / b.norm()).item() < 0.02  # seen 0.006


def test_autocast_computes_in_its_type_and_returns_the_tokens() -> None:
    x, ids, weights, gate_up, down = case(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = experts_forward(x, ids, weights, gate_up, down, num_groups=4)
    want = experts_forward(x.bfloat16(), ids, weights, gate_up.bfloat16(), down.bfloat16(), num_groups=4)
    assert got.dtype == torch.float32
    assert torch.equal(got, want.float())


@pytest.mark.parametrize("num_groups", [1, 4])
def test_rows_are_sorted_by_expert_then_token(num_groups: int) -> None:
    ids = case(11)[1]
    order = sort_rows(ids, 8, num_groups)
    want = sorted((ids[token, column].item(), token, column) for token in range(11) for column in range(4))
    assert order.tokens.tolist() == [token for _, token, _ in want]
    assert order.pairs.tolist() == [column * 11 + token for _, token, column in want]
    counts = [sum(expert == row[0] for row in want) for expert in range(8)]
    assert order.ends.tolist() == [sum(counts[: expert + 1]) for expert in range(8)]
    assert order.ends.dtype == torch.int32


@pytest.mark.parametrize("implementation", FAST)
def test_grouped_matmul_keeps_its_contract(implementation: ExpertsImplementation) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, other = torch.randn(10, 8, generator=generator), torch.randn(3, 8, 16, generator=generator)
    grads, ends = torch.randn(10, 16, generator=generator), torch.tensor([4, 4, 10], dtype=torch.int32)
    forward = torch.cat((rows[:4] @ other[0], rows[4:] @ other[2]))
    outer = torch.stack((rows[:4].t() @ grads[:4], torch.zeros(8, 16), rows[4:].t() @ grads[4:]))
    got = grouped_matmul(rows, other, ends, implementation=implementation)
    torch.testing.assert_close(got, forward, rtol=0, atol=4e-6)  # values to 16; seen 0, two roundings allowed
    torch.testing.assert_close(
        grouped_matmul(rows, grads, ends, implementation=implementation), outer, rtol=0, atol=4e-6
    )


def test_a_fused_operator_plugs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case()
    want = gradients(experts_forward, inputs, implementation="loop")
    forms = []

    def fused(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
        forms.append(other.ndim)
        return grouped_matmul(rows, other, ends, implementation="loop")

    monkeypatch.setitem(grouped_matmul_module.GROUPED_MATMUL, "cpu", fused)
    got = gradients(experts_forward, inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert sorted(forms) == [2, 2, 3, 3, 3, 3]


def test_meta_tensors_have_shapes_and_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = GroupedExperts(hidden_size=16, intermediate_size=8, num_experts=8, num_groups=4)
        x, ids, weights = torch.empty(5, 16), torch.zeros(5, 4, dtype=torch.long), torch.empty(5, 4)
    with FlopCounterMode(display=False) as counter:
        assert module(x, ids, weights).shape == (5, 16)
    assert counter.get_total_flops() == 2 * 5 * 4 * 3 * 16 * 8


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_few_rows_visit_only_their_experts(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Of 64 experts, one token has 8 (the loop), three have 24 rows (grouped_mm)."""
    generator = torch.Generator().manual_seed(0)
    routing = route_moge(torch.randn(num_tokens, 64, generator=generator), 8, 8)
    x = torch.randn(num_tokens, 16, generator=generator)
    gate_up, down = (torch.randn(64, 16, size, generator=generator) * 0.3 for size in (16, 8))
    inputs = (x, routing.expert_ids, routing.weights, gate_up, down)
    want = gradients(experts_forward, inputs, implementation="reference")
    forms, grouped_mm = [], torch.nn.functional.grouped_mm

    def counted(rows: Tensor, other: Tensor, *, offs: Tensor) -> Tensor:
        forms.append(other.ndim)
        return grouped_mm(rows, other, offs=offs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    got = gradients(experts_forward, inputs, num_groups=8)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)  # values to 7; seen below 1e-6
    assert forms.count(3) == (0 if num_tokens == 1 else 4)
    assert forms.count(2) == 2
