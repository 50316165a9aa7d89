"""The weight functions against their formulas, written out with loops, and against autograd."""

import math

import pytest
import torch

from pangu_modules.llm.onebit.weight_functions import FUNCTIONS, Hard, signs


def reference(method: str, weight: list[list[float]], knob: float) -> list[list[float]]:
    """The effective weight (without a learned scale) entry by entry, from the table of the method."""
    entries = [value for row in weight for value in row]
    tensor_mean = sum(entries) / len(entries)
    tensor_scale = sum(abs(value) for value in entries) / len(entries)
    result = []
    for row in weight:
        row_scale = sum(abs(value) for value in row) / len(row)
        new = []
        for value in row:
            sign = 1.0 if value >= 0 else -1.0
            if method == "progressive":
                new.append(row_scale * math.tanh(knob * value / row_scale) / math.tanh(knob))
            elif method == "lambda":
                new.append(value + knob * (row_scale * sign - value))
            elif method in ("sign", "ste"):
                new.append(row_scale * sign)
            elif method == "bitnet_b1":
                new.append(tensor_scale * (1.0 if value - tensor_mean >= 0 else -1.0))
            elif method == "bitnet_b158":
                new.append(tensor_scale * max(-1, min(1, round(value / tensor_scale))))
            else:
                new.append(sign)
        result.append(new)
    return result


@pytest.mark.parametrize("method", FUNCTIONS)
def test_equals_the_formula_entry_by_entry(method):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    knob = torch.tensor(0.6, dtype=torch.float64)
    function = FUNCTIONS[method]
    scale = function.scale(weight)
    ours = scale * function.values(weight / scale, knob)[0] * function.value_factor(knob)
    want = torch.tensor(reference(method, weight.tolist(), 0.6), dtype=torch.float64)
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-14)  # measured 4e-16


def test_the_progressive_slope_is_the_derivative():
    function = FUNCTIONS["progressive"]
    knob = torch.tensor(2.5, dtype=torch.float64)
    z = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    values, kept = function.values(z, knob)
    (derivative,) = torch.autograd.grad((values * function.value_factor(knob)).sum(), z)
    torch.testing.assert_close(function.slope(kept.detach(), knob), derivative, rtol=0, atol=1e-14)


def test_the_progressive_function_goes_from_identity_to_sign_and_keeps_one():
    function = FUNCTIONS["progressive"]
    z = torch.tensor([-1.0, -0.2, 0.2, 1.0, 1.7], dtype=torch.float64)
    small, large = torch.tensor(1e-3, dtype=torch.float64), torch.tensor(104.6, dtype=torch.float64)
    near = function.values(z, small)[0] * function.value_factor(small)
    assert (near - z).abs().max() < 2e-6  # t^2 z (1 - z^2) / 3 is 1.1e-6 at 1.7
    far = function.values(z, large)[0] * function.value_factor(large)
    assert (far - signs(z)).abs().max() < 1e-15
    for t in (0.3, 2.0, 30.0):
        at_one = function.values(torch.ones(1), torch.tensor(t))[0] * function.value_factor(torch.tensor(t))
        assert at_one.item() == pytest.approx(1, abs=1e-6)
    assert function.starts_at(0.0)
    assert not function.starts_at(0.01)


def test_zero_counts_as_plus():
    assert signs(torch.tensor([-0.1, 0.0, -0.0, 0.1])).tolist() == [-1, 1, 1, 1]


@pytest.mark.parametrize("method", FUNCTIONS)
def test_the_tail_is_the_final_value_with_a_constant_slope(method):
    function = FUNCTIONS[method]
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for slope in (0.0, 1.0):
        hard = Hard(function, slope)
        assert torch.equal(hard.scale(weight), function.scale(weight))
        values, kept = hard.values(weight, torch.tensor(0.3))
        assert torch.equal(values, function.final(weight))
        assert hard.slope(kept, torch.tensor(0.3)) == slope
        assert len(values.unique()) <= function.values_per_row
