"""The binary layer: its backward against autograd, the identity at t = 0, two values at the end."""

import copy

import pytest
import torch
from torch import nn

from pangu_modules import OneBitConfig
from pangu_modules.llm.onebit.layer import (
    EffectiveWeight,
    InputScaledLinear,
    ProgressiveBinaryLinear,
    rank_one_magnitudes,
    rounded,
)
from pangu_modules.llm.onebit.plan import rows_with_other_values
from pangu_modules.llm.onebit.weight_functions import FUNCTIONS

METHODS = list(FUNCTIONS)
ROW_METHODS = [name for name in METHODS if FUNCTIONS[name].scaled_by_row_mean]


def dense(out_features=6, in_features=10, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, dtype=dtype)


def binary(linear=None, **fields):
    return ProgressiveBinaryLinear(linear or dense(), OneBitConfig(init="none", **fields))


def plain_weight(layer, weight, scale, *, differentiate):
    """The effective weight in autograd's own operations, for functions with their true derivative."""
    analytic = weight.abs().mean(1, keepdim=True)
    analytic = analytic if differentiate else analytic.detach()
    t = layer.t.double()
    return scale[:, None] * analytic * torch.tanh(t * weight / analytic) / torch.tanh(t)


@pytest.mark.parametrize("scale_grad", [True, False])
@pytest.mark.parametrize("t", [0.32, 2.6, 34.0])
def test_backward_equals_autograd(t, scale_grad):
    layer = binary(scale_grad=scale_grad)
    layer.set_phase(t)
    with torch.no_grad():
        layer.scale.copy_(torch.linspace(0.5, 1.5, 6))
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((layer.effective_weight() * gradient).sum(), (layer.weight, layer.scale))
    plain = plain_weight(layer, layer.weight, layer.scale, differentiate=scale_grad)
    want = torch.autograd.grad((plain * gradient).sum(), (layer.weight, layer.scale))
    for one, other in zip(ours, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # measured 9e-15 at t = 34


def test_gradcheck():
    weight = dense().weight.detach().requires_grad_()
    scale = torch.ones(6, 1, dtype=torch.float64, requires_grad=True)
    knob = torch.tensor(1.2, dtype=torch.float64)

    def function(weight, scale):
        return EffectiveWeight.apply(weight, scale, None, knob, FUNCTIONS["progressive"], True)

    assert torch.autograd.gradcheck(function, (weight, scale))


def test_the_learned_scale_has_a_frozen_base():
    layer = binary(scales="learned")
    start = layer.weight.detach().abs().mean(1)
    torch.testing.assert_close(layer.base, start)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer.base, start)
    layer.set_phase(50.0)
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((layer.effective_weight() * gradient).sum(), layer.weight)[0]
    z = layer.weight / start[:, None]
    t = layer.t.double()
    plain = layer.scale[:, None] * start[:, None] * torch.tanh(t * z) / torch.tanh(t)
    torch.testing.assert_close(ours, torch.autograd.grad((plain * gradient).sum(), layer.weight)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["ste", "lambda", "bitnet_b1", "bitnet_b158"])
def test_straight_through_gradients_are_those_of_the_effective_weight(method):
    layer = binary(method=method, scales="analytic")
    layer.set_phase(0.4)
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours,) = torch.autograd.grad((layer.effective_weight() * gradient).sum(), layer.weight)
    assert torch.equal(ours, gradient)


def test_straight_through_with_a_differentiated_scale():
    layer = binary(method="ste", scale_grad=True)
    weight = layer.weight
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours,) = torch.autograd.grad((layer.effective_weight() * gradient).sum(), weight)
    analytic = weight.abs().mean(1, keepdim=True)
    z = weight / analytic
    through = z + (torch.sign(z) - z).detach()  # the usual way to write it
    (want,) = torch.autograd.grad((analytic * through * gradient).sum(), weight)
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-12)


def test_onebit_gradients():
    """dL/dW = G a b, dL/da = sum_j G b sign(W), dL/db = sum_i G a sign(W)."""
    layer = binary(method="onebit")
    x = torch.eye(10, dtype=torch.float64)
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = ((layer(x) - layer.bias).T * gradient).sum()
    weight, row, column = torch.autograd.grad(loss, (layer.weight, layer.scale, layer.in_scale))
    a, b, sign = layer.scale.detach()[:, None], layer.in_scale.detach(), torch.sign(layer.weight.detach())
    torch.testing.assert_close(weight, gradient * a * b)
    torch.testing.assert_close(row, (gradient * b * sign).sum(1))
    torch.testing.assert_close(column, (gradient * a * sign).sum(0))


def test_at_t_zero_the_layer_is_the_dense_one_bit_for_bit():
    linear = dense(dtype=torch.float32)
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    expected = linear(x)
    for fields in ({}, {"scales": "learned"}, {"scales": "analytic"}, {"method": "lambda"}, {"scale_lr_mult": 3.0}):
        layer = binary(linear, **fields)
        layer.set_phase(0.0)
        assert torch.equal(layer(x), expected)


def test_only_tanh_is_saved_beside_the_weight():
    layer = binary(dense(64, 64))
    layer.set_phase(2.0)
    stored: dict[int, int] = {}

    def pack(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.effective_weight()
    stored.pop(layer.weight.untyped_storage().data_ptr())
    assert sorted(stored.values())[-1] == 64 * 64
    assert sum(size == 64 * 64 for size in stored.values()) == 1


@pytest.mark.parametrize("method", METHODS)
def test_finalized_rows_hold_two_values_and_compute_the_tail(method):
    linear = dense(dtype=torch.float32)
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    layer = binary(linear, method=method)
    with torch.no_grad():
        layer.scale.mul_(torch.linspace(0.5, 1.5, 6))
    layer.set_phase(0.3, hard=True)
    expected = layer(x)
    weight, bias = layer.weight, layer.bias
    final = layer.finalize()
    assert isinstance(final, nn.Linear)
    assert final.weight is weight
    assert final.bias is bias
    assert rows_with_other_values(final, FUNCTIONS[method].values_per_row) == 0
    assert any(len(row.unique()) == FUNCTIONS[method].values_per_row for row in final.weight)
    if FUNCTIONS[method].values_per_row == 2:
        assert all(row.min() == -row.max() for row in final.weight)
    torch.testing.assert_close(final(x), expected, rtol=1e-6, atol=1e-6)


def test_the_sign_changes_little_only_after_a_large_t():
    """The share of |W_t - W_b| in |W_b|: weights with |z| < 1 / t are not saturated."""
    changes = []
    for t in (10.0, 104.6):
        layer = binary(dense(64, 256))
        layer.set_phase(t)
        soft = layer.effective_weight().detach()
        layer.set_phase(t, hard=True)
        changes.append(float((soft - layer.effective_weight().detach()).abs().sum() / soft.abs().sum()))
    assert 0.02 < changes[0] < 0.05  # uniform weights, |z| to 2: ln 2 / (2 t) = 0.035
    assert changes[1] < 0.005  # 0.0033


def test_rows_that_do_not_hold_two_values_are_counted():
    linear = dense(4, 8)
    assert rows_with_other_values(linear) == 4
    with torch.no_grad():
        linear.weight[:3] = torch.where(linear.weight[:3] > 0, 0.5, -0.5)
    assert rows_with_other_values(linear) == 1


def test_scales_rounded_to_float16_stay_in_float32():
    final = binary(dense(dtype=torch.float32)).finalize("float16")
    scales = final.weight.abs()[:, 0]
    assert scales.dtype == torch.float32
    assert torch.equal(scales, scales.half().float())
    assert not torch.equal(scales, binary(dense(dtype=torch.float32)).finalize().weight.abs()[:, 0])


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_scale_outside_of_float16_is_refused(scale):
    with pytest.raises(ValueError, match="scale_dtype='float16': 1 row scales"):
        rounded(torch.tensor([[1.0], [scale]]), "float16")


def test_a_row_of_zeros_stays_zero_without_nan():
    linear = dense()
    with torch.no_grad():
        linear.weight[2] = 0
    layer = binary(linear)
    layer.set_phase(5.0)
    layer(torch.ones(1, 10, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert (layer.finalize().weight[2] == 0).all()


@pytest.mark.parametrize("method", ROW_METHODS)
def test_the_tail_gives_latent_weights_a_zero_gradient_and_scales_theirs(method):
    layer = binary(method=method)
    layer.set_phase(104.6, hard=True)
    layer(torch.linspace(0.1, 1, 10, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    assert layer.scale.grad.abs().min() > 0
    assert layer.weights_rest


def test_the_straight_through_tail_trains_latent_weights():
    layer = binary(hard_tail="ste")
    layer.set_phase(104.6, hard=True)
    layer(torch.ones(2, 10, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad.abs().min() > 0
    assert not layer.weights_rest


def test_the_scales_learning_rate_is_a_multiple():
    """With sign-like steps of Adam, S_l moves `scale_lr_mult` times as far."""
    moved = []
    for factor in (1.0, 4.0):
        layer = binary(scale_lr_mult=factor)
        layer.set_phase(1.0)
        optimizer = torch.optim.Adam([layer.scale], lr=1e-3)
        layer(torch.ones(2, 10, dtype=torch.float64)).sum().backward()
        optimizer.step()
        moved.append((layer.row_scale() - 1).detach())
    torch.testing.assert_close(moved[1], 4 * moved[0], rtol=1e-4, atol=0)  # Adam's eps: 1e-8 of gradients near 1


def test_state_and_copies_keep_the_phase():
    layer = binary(dense(dtype=torch.float32))
    layer.set_phase(7.0, hard=True)
    other = binary(dense(seed=1, dtype=torch.float32))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(2))
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert other.weights_rest
    assert layer.state_dict()["t"].shape == ()
    assert layer.state_dict()["hard"].dtype == torch.bool


def test_autocast_computes_weights_in_float32():
    layer = binary(dense(dtype=torch.float32))
    layer.set_phase(3.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(2, 10))
        assert layer.effective_weight().dtype == torch.float32
    assert y.dtype == torch.bfloat16


def test_rank_one_magnitudes_find_a_product():
    a, b = torch.rand(5, dtype=torch.float64) + 0.1, torch.rand(7, dtype=torch.float64) + 0.1
    signs = torch.where(torch.rand(5, 7) > 0.5, 1.0, -1.0).double()
    rows, columns = rank_one_magnitudes(a[:, None] * b * signs)
    torch.testing.assert_close(rows[:, None] * columns, a[:, None] * b)
    assert columns.mean().item() == pytest.approx(1)


def test_rank_one_magnitudes_equal_the_singular_vectors():
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = rank_one_magnitudes(weight)
    u, s, v = torch.linalg.svd(weight.abs())
    best = s[0] * u[:, :1] @ v[:1]
    torch.testing.assert_close(rows[:, None] * columns, best, rtol=0, atol=1e-12)


def test_input_scaled_linear():
    layer = InputScaledLinear(3, 2, dtype=torch.float64)
    layer.in_scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ (layer.weight * layer.in_scale).T + layer.bias)
