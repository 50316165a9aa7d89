"""`fuse`: off the NPU nothing changes; with the operators, emulated, models compute the same."""

import copy
import pickle

import pytest
import torch
from npu_checks import through
from npu_emulator import NpuEmulator
from peft import LoraConfig, get_peft_model
from tiny_moge import moge_module, short_trainer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pangu_modules.ascend.ops.callback import FusedOperators
from pangu_modules.ascend.ops.dispatch import SETTINGS, recorded
from pangu_modules.ascend.ops.fusing import fuse, unfuse
from pangu_modules.ascend.ops.fusing.seams import empty_seams, fill_seams
from pangu_modules.common import registry

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def model_of(kind, **fields):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields}))
    with torch.no_grad():  # the initial weights give logits near 0, in which a wrong norm could hide
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture
def filled():
    fill_seams("cpu")
    yield
    empty_seams("cpu")


def step(model, **inputs):
    model.zero_grad()
    output = model(input_ids=IDS, labels=IDS, use_cache=False, **inputs)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "mistral"])
def test_off_the_npu_a_fused_model_computes_the_same_bits(kind):
    model = model_of(kind)
    names, (logits, gradients) = list(model.state_dict()), step(model)
    fusion = fuse(model)
    fused_logits, fused_gradients = step(model)
    assert fusion.fused[next(name for name in fusion.fused if name.endswith("RMSNorm"))] >= 5
    assert torch.equal(logits, fused_logits)
    assert all(torch.equal(gradients[name], fused_gradients[name]) for name in gradients)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("mask", [None, PADDED])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_a_step_with_the_operators_equals_one_without(kind, mask):
    """Would fail for a mask of the wrong polarity or a causal mask from the wrong corner."""
    model = model_of(kind)
    logits, gradients = step(model, attention_mask=mask)
    fuse(model)
    with through(NpuEmulator()) as emulator:
        fused_logits, fused_gradients = step(model, attention_mask=mask)
    assert emulator.calls["npu_fusion_attention"] == 2
    assert emulator.calls["npu_rotary_mul"] == 4
    assert emulator.calls["npu_gemma_rms_norm" if kind == "gemma" else "npu_rms_norm"] >= 5
    assert emulator.calls.get("npu_swiglu", 0) == (0 if kind == "gemma" else 2)  # Gemma's MLPs have another activation
    seen = slice(None) if mask is None else PADDED.bool()
    torch.testing.assert_close(fused_logits[seen], logits[seen], rtol=0, atol=2e-4)  # seen 2e-5, of logits to 30
    for name in gradients if mask is None else ():
        torch.testing.assert_close(fused_gradients[name], gradients[name], rtol=1e-3, atol=1e-5)


def test_generation_uses_the_operator_for_inference():
    model = model_of("llama").to(torch.bfloat16).eval()
    plain = model.generate(IDS, max_new_tokens=4, do_sample=False)
    fuse(model)
    with through(NpuEmulator()) as emulator, torch.no_grad():
        fused = model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert emulator.calls["npu_fused_infer_attention_score"] == 2 * 4
    assert "npu_fusion_attention" not in emulator.calls
    assert torch.equal(plain, fused)


def test_mixture_takes_products_and_routing_from_its_seams(filled):
    module = moge_module()
    batch = {"input_ids": IDS}
    before = module.compute_outputs(batch)["logits"]
    fuse(module)
    with through(NpuEmulator()) as emulator:
        loss = module.training_step(batch, 0)
        loss.backward()
        gradients = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        after = module.compute_outputs(batch)["logits"]
    assert {"npu_grouped_matmul", "npu_moe_gating_top_k_softmax", "npu_cross_entropy_loss"} <= set(emulator.calls)
    empty_seams("cpu")
    module.training_step(batch, 0).backward()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    for fused, parameter in zip(gradients, module.parameters(), strict=True):
        torch.testing.assert_close(fused, parameter.grad, rtol=1e-3, atol=1e-5)


def test_twice_changes_nothing_and_unfuse_undoes():
    model = model_of("llama")
    first = fuse(model)
    assert sum(first.fused.values()) == 2 * 3 + 1 + 1 + 2
    second = fuse(model)
    assert not [name for name in second.fused if not name.startswith("rotary")]
    unfuse(model)
    assert model.config._attn_implementation == "sdpa"
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_copies_compute_with_their_own_weights():
    model = model_of("llama")
    fuse(model)
    double = copy.deepcopy(model)
    with torch.no_grad():
        double.model.norm.weight.zero_()
    assert double(IDS).logits.abs().max() == 0
    assert model(IDS).logits.abs().max() > 0


def test_pickled_models_are_still_fused():
    model = model_of("llama")
    fuse(model)
    double = pickle.loads(pickle.dumps(model))
    assert torch.equal(double(IDS).logits, model(IDS).logits)
    assert not [name for name in fuse(double).fused if "rotary" not in name]


def test_mixed_precision_fuses_all_that_full_precision_does():
    """Under autocast queries, keys and tables have several types, and no operator takes that."""
    model = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = step(model)
        fuse(model)
        with through(NpuEmulator(), mode="on") as emulator:
            fused, _ = step(model)
    assert set(emulator.calls) == {"npu_rms_norm", "npu_rotary_mul", "npu_fusion_attention", "npu_swiglu"}
    error = (fused - logits).float().norm() / logits.float().norm()
    assert error < 0.03  # seen 0.012: a few roundings to bfloat16 more or less


def test_other_replacements_of_a_forward_pass_are_respected():
    model = model_of("llama")
    model.model.norm.forward = lambda x: x
    assert fuse(model).left == {"LlamaRMSNorm": "something else has replaced its forward pass"}
    unfuse(model)
    assert "forward" in vars(model.model.norm)


def test_saved_folders_do_not_know(tmp_path):
    model = model_of("llama")
    model.save_pretrained(tmp_path / "plain")
    fuse(model)
    model.save_pretrained(tmp_path / "fused")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "fused" / file.name).read_bytes()


class ScaledRMSNorm(nn.Module):
    """A norm by another name's rule: it also halves."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight * 0.5


def test_modules_that_compute_something_else_are_left_and_named():
    fusion = fuse(nn.Sequential(ScaledRMSNorm()))
    assert fusion.left == {"ScaledRMSNorm": "ScaledRMSNorm computes something else"}
    model = model_of("cohere")
    left = fuse(model).left
    assert "rotates in another way" in left["rotary embedding of CohereAttention"]
    eager = model_of("llama")
    eager.set_attn_implementation("eager")
    assert "only 'sdpa' is replaced" in fuse(eager).left["attention of LlamaForCausalLM"]
    assert "left: " in str(fuse(eager))


def test_the_seams_of_the_registry_are_all_filled(filled):
    for name in registry.names("seam"):
        assert "cpu" in registry.load("seam", name)


def test_callback_fuses_before_training(tmp_path):
    module = moge_module()
    trainer = short_trainer(tmp_path, FusedOperators())
    data = torch.utils.data.DataLoader([{"input_ids": row} for row in IDS], batch_size=2)
    with recorded() as records:
        trainer.fit(module, data)
    assert {"rms_norm", "rotary_mul", "gated_silu", "fusion_attention"} <= {record.operator for record in records}
    assert SETTINGS.mode == "auto"
    trainer.save_checkpoint(tmp_path / "fused.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "fused.ckpt", weights_only=True)
    assert loaded.model.config._attn_implementation == "sdpa"
    assert torch.equal(loaded.eval().model(IDS).logits, module.eval().model(IDS).logits)


def test_adapters_are_fused_around():
    model = get_peft_model(
        model_of("llama"), LoraConfig(target_modules=["q_proj", "gate_proj"], init_lora_weights=False)
    )
    logits, gradients = step(model)
    fusion = fuse(model)
    assert fusion.fused["LlamaMLP"] == 2
    assert not fusion.left
    with through(NpuEmulator()) as emulator:
        fused_logits, fused_gradients = step(model)
    assert emulator.calls["npu_swiglu"] == emulator.calls["npu_fusion_attention"] == 2
    torch.testing.assert_close(fused_logits, logits, rtol=0, atol=2e-4)
    assert set(gradients) == set(fused_gradients) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_callback_refuses_other_modes():
    with pytest.raises(ValueError, match="fused_ops='fast'"):
        FusedOperators("fast")
