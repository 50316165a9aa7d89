"""Int8Linear: near the float layer, equal through the operators, for inference alone."""

import pytest
import torch
from npu_checks import through
from npu_emulator import NpuEmulator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pangu_modules.ascend.ops.int8_linear import Int8Linear, quantize_linears


def layer(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Linear(64, 32).to(dtype)


def test_equals_quantized_factors_multiplied_one_by_one():
    """Would fail for scales of the columns on rows, or a bias before the scale."""
    plain = layer(torch.float32)
    quantized, x = Int8Linear.of(plain), torch.randn(3, 64)
    found = quantized(x)
    for row in range(3):
        row_scale = x[row].abs().max() / 127
        for column in range(32):
            scale = plain.weight[column].abs().max() / 127
            products = (x[row] / row_scale).round() * (plain.weight[column] / scale).round()
            wanted = products.sum() * scale * row_scale + plain.bias[column]
            torch.testing.assert_close(found[row, column], wanted, rtol=1e-5, atol=1e-5)


def test_error_is_that_of_eight_bits():
    plain, x = layer(torch.float32), torch.randn(256, 64)
    error = (Int8Linear.of(plain)(x) - plain(x)).norm() / plain(x).norm()
    assert error < 0.015  # seen 0.010: two factors with steps of 1 / 127 of their largest entry


def test_uses_both_operators_with_the_same_result():
    quantized, x = Int8Linear.of(layer()), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    with torch.no_grad(), through(NpuEmulator(), mode="on") as emulator:
        fused = quantized(x)
    assert emulator.calls == {"npu_dynamic_quant": 1, "npu_quant_matmul": 1}
    torch.testing.assert_close(fused, quantized(x), rtol=0, atol=0.02)  # a step of int8, one of bfloat16
    assert fused.shape == (2, 5, 32)


def test_models_keep_their_heads_and_reload():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
        assert quantize_linears(model) == 14
        after = model(ids).logits
    assert type(model.lm_head) is nn.Linear
    assert 0 < (after - before).norm() / before.norm() < 0.05
    again = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
    quantize_linears(again)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids).logits, after)


def test_gradients_and_models_without_layers_are_refused():
    with pytest.raises(ValueError, match="for inference and have no gradients"):
        Int8Linear.of(layer())(torch.randn(2, 64, dtype=torch.bfloat16, requires_grad=True))
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear to quantize outside lm_head"):
        quantize_linears(nn.Sequential(nn.ReLU()))
