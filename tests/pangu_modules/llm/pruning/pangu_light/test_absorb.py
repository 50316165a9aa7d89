"""Absorption of post-norms: the constants against loops, the absorbed model against the sandwich with constants."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pangu_modules.llm.pruning.pangu_light.absorb import (
    AbsorbConfig,
    absorb_post_norms,
    check_absorption,
    post_norm_statistics,
)

IDS = torch.randint(1, 61, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])  # none, left, right padding
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS.flip(0)}]
SIZES = {"hidden_size": 24, "intermediate_size": 28, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
FORMULAS = {
    "mean_rms": lambda rms: sum(rms) / len(rms),
    "rms_mean": lambda rms: math.sqrt(sum(r * r for r in rms) / len(rms)),
    "inv_mean_inv": lambda rms: len(rms) / sum(1 / r for r in rms),
}


def sandwich_model(**changes):
    from pangu_modules.llm.models.sandwich import SandwichLlamaConfig, SandwichLlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(7)
        fields = SIZES | {"vocab_size": 61, "num_hidden_layers": 3, "pad_token_id": 0, "eos_token_id": None} | changes
        model = SandwichLlamaForCausalLM(SandwichLlamaConfig(**fields)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model


class ConstantNorm(nn.Module):
    """gamma * u / sigma: the sandwich model with a constant in place of the RMS."""

    def __init__(self, gain, sigma):
        super().__init__()
        self.gain, self.sigma = gain, sigma

    def forward(self, u):
        return self.gain * u / self.sigma


def rms_values(model, name):
    """Return RMS(u) before one post-norm by batch, row and position, by re-computing u token by token."""
    norm = model.get_submodule(f"model.{name}")
    recorded = []
    handle = norm.register_forward_pre_hook(lambda module, args: recorded.append(args[0]))
    with torch.no_grad():
        for batch in BATCHES:
            model(batch["input_ids"], attention_mask=batch.get("attention_mask"))
    handle.remove()
    first, others = [], []
    for u, batch in zip(recorded, BATCHES, strict=True):
        mask = batch.get("attention_mask", torch.ones_like(IDS))
        for row in range(3):
            real = mask[row].nonzero().flatten().tolist()
            values = [math.sqrt(sum(v * v for v in u[row, p].tolist()) / 24 + norm.variance_epsilon) for p in real]
            first.append(values[0])
            others += values[1:]
    return first, others


@pytest.mark.parametrize("skip_first_token", [True, False])
@pytest.mark.parametrize("sigma", list(FORMULAS))
def test_constants_equal_loops_over_tokens(sigma, skip_first_token):
    model = sandwich_model()
    statistics = post_norm_statistics(model, BATCHES, sigma=sigma, skip_first_token=skip_first_token)
    assert len(statistics) == 6
    for name in ("layers.0.post_self_attn_layernorm", "layers.2.post_mlp_layernorm"):
        first, others = rms_values(model, name)
        used = others if skip_first_token else first + others
        want = FORMULAS[sigma](used)
        got = statistics[name]
        assert got.sigma == pytest.approx(want, rel=1e-12)
        mean = sum(used) / len(used)
        spread = math.sqrt(sum((r - mean) ** 2 for r in used) / len(used)) / mean
        assert got.variation == pytest.approx(spread, rel=1e-10)
        error = sum(abs(r / want - 1) for r in first) / len(first)
        assert got.first_token_error == pytest.approx(error, rel=1e-10)


def test_estimators_are_ordered():
    sigmas = [
        {name: entry.sigma for name, entry in post_norm_statistics(sandwich_model(), BATCHES, sigma=sigma).items()}
        for sigma in ("inv_mean_inv", "mean_rms", "rms_mean")
    ]
    assert all(low < mean < high for low, mean, high in zip(*(s.values() for s in sigmas), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_absorbed_model_is_a_plain_llama_and_equals_the_sandwich_with_constants(options, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = sandwich_model(**options)
    before = copy.deepcopy(model.state_dict())
    absorbed, statistics = absorb_post_norms(model, BATCHES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(absorbed) is LlamaForCausalLM
    for name, entry in statistics.items():
        layer_name, norm_name = f"model.{name}".rsplit(".", 1)
        layer = model.get_submodule(layer_name)
        setattr(layer, norm_name, ConstantNorm(getattr(layer, norm_name).weight, entry.sigma))
    # 1e-15 measured on logits of size 3; the claim is 1e-5
    torch.testing.assert_close(absorbed(IDS).logits, model(IDS).logits, rtol=0, atol=1e-11)
    absorbed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    # equal weights in differently aligned memory: 4e-16 measured
    torch.testing.assert_close(loaded(IDS).logits, absorbed(IDS).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_absorption_is_exact_where_every_token_has_the_same_rms():
    model = sandwich_model(num_hidden_layers=1)
    batch = {"input_ids": torch.full((1, 2), 5)}  # two equal tokens have equal values, attention output and RMS
    absorbed, statistics = absorb_post_norms(model, [batch])
    assert all(entry.first_token_error < 1e-6 for entry in statistics.values())
    # float32 inside the norms: 1e-7 measured
    torch.testing.assert_close(absorbed(**batch).logits, model(**batch).logits, rtol=0, atol=5e-6)


@torch.no_grad()
def test_sizes_that_llama_refuses_become_a_mistral():
    from transformers import MistralForCausalLM

    from pangu_modules.llm.pruning.surgery import keep_hidden, refresh_config

    model = sandwich_model()
    keep_hidden(model, range(22))  # no multiple of 6 heads
    refresh_config(model)
    absorbed, statistics = absorb_post_norms(model, BATCHES)
    assert type(absorbed) is MistralForCausalLM
    assert absorbed.config.sliding_window is None
    for name, entry in statistics.items():
        layer_name, norm_name = f"model.{name}".rsplit(".", 1)
        layer = model.get_submodule(layer_name)
        setattr(layer, norm_name, ConstantNorm(getattr(layer, norm_name).weight, entry.sigma))
    torch.testing.assert_close(absorbed(IDS).logits, model(IDS).logits, rtol=0, atol=1e-11)


def test_pre_norm_model_is_returned_with_a_warning(tiny_model):
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match="absorption does nothing: the model has no post-norms"):
        absorbed, statistics = absorb_post_norms(model, BATCHES)
    assert absorbed is model
    assert statistics == {}


def test_post_norms_that_follow_no_linear_map_are_refused():
    model = sandwich_model()
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)
    with pytest.raises(ValueError, match=r"layers\.1\.post_mlp_layernorm follows mlp\.down_proj, a Sequential"):
        absorb_post_norms(model, BATCHES)
    model = sandwich_model()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x, forward=mlp.forward: forward(x) * 2
    with pytest.raises(ValueError, match=r"layers\.1\.post_mlp_layernorm does not directly follow its linear map"):
        absorb_post_norms(model, BATCHES)


def test_sequences_of_one_token_leave_nothing_for_the_constant():
    with pytest.raises(ValueError, match="no token is left for the constant"):
        absorb_post_norms(sandwich_model(), [{"input_ids": IDS[:, :1]}])
    absorb_post_norms(sandwich_model(), [{"input_ids": IDS[:, :1]}], skip_first_token=False)


def test_broken_weights_are_named():
    model = sandwich_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.post_mlp_layernorm: RMS\(u\) averages to nan"):
        absorb_post_norms(model, BATCHES)


def test_too_large_a_loss_is_refused_with_the_remedy():
    check_absorption(10.0, 10.2, AbsorbConfig())
    with pytest.raises(ValueError, match=r"from 10\.000 to 10\.210 \(\+2\.1%\).*max_ppl_increase=0\.02: train longer"):
        check_absorption(10.0, 10.21, AbsorbConfig())
    with pytest.raises(ValueError, match="use order='heal'"):
        check_absorption(10.0, float("nan"), AbsorbConfig(order="at_end"))


def test_absorbing_at_the_end_reports_perplexity_and_keeps_the_limit():
    from pangu_modules.llm.models.perplexity import perplexity

    model = sandwich_model()
    text = model.generate(IDS, max_new_tokens=20, do_sample=False, pad_token_id=0)  # what the model itself expects
    test = [{"input_ids": text}]
    absorbed, _ = absorb_post_norms(model, BATCHES)
    before, after = perplexity(model, test), perplexity(absorbed, test)
    assert after > before
    check_absorption(before, after, AbsorbConfig(order="at_end", max_ppl_increase=10.0))
    strict = AbsorbConfig(order="at_end", max_ppl_increase=(after / before - 1) / 2)
    with pytest.raises(ValueError, match="absorption raised the perplexity"):
        check_absorption(before, after, strict)


def test_the_plan_rebuilds_the_plain_model_for_the_weights():
    from pangu_modules.training.structure import plan_from

    model = sandwich_model()
    absorbed, _ = absorb_post_norms(model, BATCHES)
    module = type("Module", (), {"model": model})()
    plan = plan_from({"kind": "absorb", "source": "pruning"})
    plan.apply(module)
    assert type(module.model) is type(absorbed)
    module.model.load_state_dict(absorbed.state_dict())
    assert torch.equal(module.model(IDS).logits, absorbed(IDS).logits)
    once = module.model
    plan.apply(module)
    assert module.model is once
