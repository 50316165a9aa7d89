"""Packed rows: each sequence gets the logits, losses and gradients that it gets alone, or the model is refused."""

from types import SimpleNamespace

import pytest
import torch
from tiny_llm import TINY_LLAMA, tiny_module
from tiny_moge import moge_module

from datamodules.text.chat import pad_right
from datamodules.text.packing import concatenated
from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.distillation.teacher import distillation_objective
from pangu_modules.llm.moge.auxiliary_loss import auxiliary_objective
from pangu_modules.training.objectives import Objective, evaluate, sequence_losses

SIZES = {"vocab_size": 128, "hidden_size": 32}
LENGTHS = (7, 4, 9, 5, 3, 11)
ROWS = ([0, 1, 3], [2, 4], [5])
FAMILIES = {
    "llama": {},
    "llama by eager attention": {"attn_implementation": "eager"},
    "mistral": {"sliding_window": 3},
    "gemma2": {"sliding_window": 3, "head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt2": {"n_layer": 2, "n_head": 4},
    "sandwich_llama": {},
}
FLOAT32 = ("llama by eager attention", "gemma2", "qwen3_moe")  # whose code computes parts of it in float32 anyway
GENERAL = ("llama", "mistral", "gemma2", "qwen3_moe", "sandwich_llama", "lfm2")  # that have Llama's fields
REFUSED = {
    "mamba": {"num_hidden_layers": 2, "initializer_range": 0.2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bloom": {"n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "opt": {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
}
"""Recurrent ones, and those whose code makes masks of its own."""


def family_module(family, fields):
    name, fields = family.split(" ", maxsplit=1)[0], dict(fields)
    torch.manual_seed(0)
    attention = fields.pop("attn_implementation", "sdpa")
    model_args = {**(TINY_LLAMA if name in GENERAL else SIZES), **fields}
    return CausalLM.Config(architecture=name, model_args=model_args, attn_implementation=attention).build().eval()


def conversations(first_is_label=False):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in LENGTHS:
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        asked = 0 if first_is_label else length // 2
        samples.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return samples


def packed_batch(samples):
    return pad_right([concatenated([samples[index] for index in row]) for row in ROWS], 0)


def single_batch(samples):
    return pad_right([samples[index] for row in ROWS for index in row], 0)


def real(values, batch):
    return values[batch["attention_mask"] == 1]


def gradients(module, batch):
    module.zero_grad()
    total = evaluate(module.objectives, module, batch, module.compute_outputs(batch)).total
    total.backward()
    return total.detach(), {name: weight.grad.clone() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_single_sequences(family):
    """Catches a mask that is dropped, positions that go on, and windows that reach over a border."""
    module = family_module(family, FAMILIES[family])
    samples = conversations()
    packed, single = packed_batch(samples), single_batch(samples)
    for dtype in (torch.float32,) if family in FLOAT32 else (torch.float32, torch.float64):
        module, bound = module.to(dtype), {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]  # seen: 3e-6 and 9e-16
        with torch.no_grad():
            got, wanted = (real(module.compute_outputs(batch)["logits"], batch) for batch in (packed, single))
            contaminated = module.model(input_ids=packed["input_ids"], attention_mask=packed["attention_mask"]).logits
        assert (got - wanted).abs().max() < bound
        assert (real(contaminated, packed) - wanted).abs().max() > 100 * bound
    module.check_packing()


@pytest.mark.parametrize("loss_per", ["sequence", "token"])
@pytest.mark.parametrize("first_is_label", [False, True], ids=["answers", "every token"])
def test_losses_and_gradients_are_those_of_single_sequences(first_is_label, loss_per):
    """Catches a mean over rows or over all targets, and a label across a border (where every token is a label)."""
    module = tiny_module(loss_per=loss_per).double()
    samples = conversations(first_is_label)
    packed, single = packed_batch(samples), single_batch(samples)
    loss = module.objectives["language_modelling"].loss
    results = [loss(module, batch, module.compute_outputs(batch)) for batch in (packed, single)]
    if loss_per == "token":
        assert torch.equal(*(counts for _, counts in results))
    got, wanted = map(sequence_losses, results)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert len(got) == len(LENGTHS)
    (total, ours), (expected, theirs) = gradients(module, packed), gradients(module, single)
    assert abs(total - expected) < 1e-12
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-12  # seen: 2e-16
    rows = torch.stack([got[:3].mean(), got[3:5].mean(), got[5]]).mean()
    assert abs(rows - got.mean()) > 1e-4  # rows of three, two and one: their mean is another one


@pytest.mark.parametrize("loss_per", ["sequence", "token"])
def test_mixtures_count_each_token_once(loss_per):
    """Catches an auxiliary loss that counts the padding of a row's end."""
    module = moge_module(loss_per=loss_per).double()
    module.objectives["balance"] = auxiliary_objective(0.1)
    samples = conversations()
    (_, ours), (_, theirs) = gradients(module, packed_batch(samples)), gradients(module, single_batch(samples))
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-12
    module.check_packing()


def test_distillation_reads_packed_rows():
    """Catches a teacher that sees the sequence before."""
    module, teacher = tiny_module().double(), tiny_module(seed=1).double()
    module.objectives = {"kd": Objective(distillation_objective(teacher), packed=True)}
    samples = conversations()
    total, ours = gradients(module, packed_batch(samples))
    expected, theirs = gradients(module, single_batch(samples))
    assert abs(total - expected) < 1e-12
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-12
    mixing = distillation_objective(family_module("bloom", REFUSED["bloom"]))
    with pytest.raises(ValueError, match="BloomForCausalLM lets a sequence see"):
        mixing(module, packed_batch(samples), {"logits": None})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", REFUSED)
def test_models_that_mix_sequences_are_refused(family, dtype):
    """In bfloat16 a leak can be below the precision of the logits, and shows in the gradient alone."""
    module = family_module(family, REFUSED[family]).to(dtype)
    with pytest.raises(ValueError, match=r"packing: \w+ForCausalLM lets a sequence see the one .*set packing=none"):
        module.check_packing()


def test_asking_leaves_no_trace():
    module = tiny_module().train()
    module.model.lm_head.eval()
    state = torch.random.get_rng_state()
    module.check_packing()
    assert module.training
    assert module.model.model.training
    assert not module.model.lm_head.training
    assert all(weight.grad is None for weight in module.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not module.model.get_input_embeddings()._forward_hooks


def test_what_takes_a_row_for_a_sequence_is_refused():
    module = tiny_module()
    batch = packed_batch(conversations())
    module.objectives["other"] = Objective(lambda module, batch, outputs: outputs["logits"].mean((1, 2)))
    for asked in (module.check_packing, lambda: evaluate(module.objectives, module, batch, {})):
        with pytest.raises(ValueError, match="objective 'other' takes each row for one sequence: set packing=none"):
            asked()
    del module.objectives["other"]
    module._trainer = SimpleNamespace(callbacks=[SimpleNamespace(needs={"sample weights"}, name="dwm")])
    with pytest.raises(ValueError, match="callback 'dwm' weights each row of a batch"):
        module.check_packing()


def test_an_evaluation_weighs_targets_packed_or_not():
    module = tiny_module().double()
    losses = []
    for batch in (packed_batch(conversations()), single_batch(conversations())):
        module.on_validation_epoch_start()
        module.validation_step(batch, 0)
        losses.append(module._evaluated.compute())
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
