"""PackedBinaryLinear: exact bits, the dense product, and layers that are not binary."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from binary_llm import make_binary
from torch import nn

from pangu_modules.llm.onebit import kernel, packed_linear
from pangu_modules.llm.onebit.layer import InputScaledLinear
from pangu_modules.llm.onebit.packed_linear import KERNEL_TOKENS, PackedBinaryLinear, pack_signs, unpack_signs

# A product of 72 inputs of size 1 in float32, seen 2e-6 between two orders of summation.
BOUND = 1e-5


def binary_linear(in_features: int = 72, out_features: int = 11, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    linear = nn.Linear(in_features, out_features, bias)
    make_binary(linear)
    return linear


def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "load", lambda: None)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 72, 100])
def test_bits_are_low_bit_first_and_come_back(columns):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns))
    weight[0] = 0.0
    packed = pack_signs(weight)
    assert packed.dtype == torch.uint8
    assert packed.shape == (5, (columns + 7) // 8)
    for row, values in enumerate(weight.tolist()):
        for column in range(8 * packed.shape[1]):
            bit = (int(packed[row, column // 8]) >> (column % 8)) & 1
            assert bit == (column < columns and values[column] >= 0)
    assert torch.equal(unpack_signs(packed, columns), weight >= 0)


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("in_features", [72, 77])
def test_packing_is_exact_and_products_are_those_of_the_dense_layer(monkeypatch, with_kernel, bias, in_features):
    if not with_kernel:
        without_kernel(monkeypatch)
    linear = binary_linear(in_features, bias=bias)
    packed = PackedBinaryLinear.from_linear(linear)
    assert torch.equal(packed.dense_weight(), linear.weight)
    back = packed.to_linear()
    assert torch.equal(back.weight, linear.weight)
    assert (back.bias is None) if linear.bias is None else torch.equal(back.bias, linear.bias)
    for shape in [(), (1,), (1, 1), (2, 4), (KERNEL_TOKENS,), (KERNEL_TOKENS + 1,), (3, 0)]:
        x = torch.randn(*shape, in_features)
        y = packed(x)
        assert y.shape == (*shape, 11)
        assert torch.allclose(y, linear(x), rtol=0, atol=BOUND)


def test_other_types_come_back_in_their_type():
    linear = binary_linear()
    packed = PackedBinaryLinear.from_linear(linear)
    for tokens in (1, 20):
        x = torch.randn(tokens, 72, dtype=torch.bfloat16)
        y = packed(x)
        assert y.dtype == torch.bfloat16
        # bfloat16 has 8 bits: rounding the result, and beyond the kernel scales and products, of sizes up to 2.
        assert torch.allclose(y.float(), linear(x.float()), rtol=2**-8, atol=2**-6)


def test_there_is_no_gradient():
    packed = PackedBinaryLinear.from_linear(binary_linear())
    for tokens in (1, 20):
        assert not packed(torch.randn(tokens, 72, requires_grad=True)).requires_grad
    assert list(packed.parameters()) == []


def test_views_that_are_not_contiguous_are_read_rightly():
    linear = binary_linear()
    packed = PackedBinaryLinear.from_linear(linear)
    x = torch.randn(72, 6).T
    assert torch.allclose(packed(x), linear(x), rtol=0, atol=BOUND)
    step = torch.randn(3, 5, 72)[:, -1:]
    assert torch.allclose(packed(step), linear(step), rtol=0, atol=BOUND)


def test_input_scales_are_kept():
    linear = InputScaledLinear(72, 11)
    make_binary(linear)
    linear.in_scale.uniform_(0.5, 2)
    packed = PackedBinaryLinear.from_linear(linear)
    for tokens in (1, 20):
        x = torch.randn(tokens, 72)
        assert torch.allclose(packed(x), linear(x), rtol=0, atol=2 * BOUND)
    back = packed.to_linear()
    assert isinstance(back, InputScaledLinear)
    assert torch.equal(back.in_scale, linear.in_scale)


def test_a_row_of_zeros_stays_zero():
    linear = binary_linear(bias=False)
    with torch.no_grad():
        linear.weight[3] = 0
    packed = PackedBinaryLinear.from_linear(linear)
    assert torch.equal(packed.dense_weight(), linear.weight)
    assert float(packed(torch.randn(1, 72))[0, 3]) == 0


def test_layers_that_are_not_binary_are_named():
    linear = binary_linear()
    with torch.no_grad():
        linear.weight[2, 5] *= 1.5
        linear.weight[7, 1] = 0
    with pytest.raises(ValueError, match=r"q_proj is not binary: row 2 holds 3 values instead of two \(2 such rows"):
        PackedBinaryLinear.from_linear(linear, "q_proj")
    with pytest.raises(ValueError, match="q_proj is a LayerNorm, not a plain linear layer: finalize"):
        PackedBinaryLinear.from_linear(nn.LayerNorm(8), "q_proj")


def test_a_half_scale_is_computed_in_float32():
    packed = PackedBinaryLinear.from_linear(binary_linear())
    half = copy.deepcopy(packed).half()
    x = torch.randn(1, 72)
    assert half.packed.dtype == torch.uint8
    # float16 scales have 11 bits, and there are sums of size 10.
    assert torch.allclose(half(x), packed(x), rtol=2**-10, atol=2**-8)


def test_other_devices_unpack_and_say_so_once(monkeypatch):
    packed_linear._tell_unpacking.cache_clear()
    with pytest.warns(UserWarning, match="kernel for the CPU only; on npu each forward unpacks"):
        packed_linear._tell_unpacking("npu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed_linear._tell_unpacking("npu")
        packed = PackedBinaryLinear(72, 11, device="meta")
        assert packed(torch.empty(2, 72, device="meta")).shape == (2, 11)
    packed_linear._tell_unpacking.cache_clear()


@pytest.mark.gpu
def test_on_a_gpu():
    linear = binary_linear()
    packed = PackedBinaryLinear.from_linear(linear).cuda()
    x = torch.randn(3, 72)
    # The order of summation is the GPU's.
    assert torch.allclose(packed(x.cuda()).cpu(), linear(x), rtol=0, atol=BOUND)
