"""The whole pipeline: what it keeps, that removal equals masking, and what it refuses."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from pydantic import ValidationError

from pangu_modules.llm.models import decoder
from pangu_modules.llm.models.perplexity import perplexity
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.pangu_light.config import BASELINES, ClapConfig, PanguLightConfig, baseline
from pangu_modules.llm.pruning.pangu_light.importance import collect_importance
from pangu_modules.llm.pruning.pangu_light.pipeline import (
    apply_selection,
    compare_reinitialisations,
    fingerprint,
    prune_pangu_light,
    select,
)
from pangu_modules.llm.pruning.pangu_light.selection import PanguLightSelection
from pangu_modules.llm.pruning.pangu_light.target import ModelShape
from pangu_modules.llm.pruning.plan import ShapePlan

FAMILIES = ["llama", "llama_bias", "qwen2", "qwen3", "mistral"]
IDS = torch.randint(1, 61, (4, 9), generator=torch.Generator().manual_seed(3))
BATCHES = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]
JOINT = {"hidden_size": 18, "intermediate_size": 20, "num_key_value_heads": 2, "num_hidden_layers": 3}
PLAIN = {"clap": {"enabled": False}, "slnp": "none"}


@torch.no_grad()
def logits_of(model):
    return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slnp", ["slnp", "none", "inverse", "calibrated"])
def test_a_target_of_the_present_shape_changes_no_bit(tiny_model, family, slnp):
    model = tiny_model(family)
    before, weights = logits_of(model), copy.deepcopy(model.state_dict())
    report = prune_pangu_light(model, PanguLightConfig(target={}, slnp=slnp), BATCHES)
    assert torch.equal(logits_of(model), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert report.parameters_before == report.parameters_after
    assert report.removed_share == 0
    assert report.norm_factors == (1.0, 1.0, 1.0)
    assert report.kept_layers == (0, 1, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_channels_and_layers_removed_equal_masked(tiny_model, family):
    model = tiny_model(family)
    target = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 9, "num_hidden_layers": 3}
    selection = select(model, BATCHES, PanguLightConfig(target=target, **PLAIN))
    reference = copy.deepcopy(model)
    surgery.keep_layers(reference, selection.layers)
    for position, layer in enumerate(reference.model.layers):
        groups = [group for _, group in selection.groups[position]]
        heads = [h for h in selection.query_heads[selection.layers[position]] if h // 2 in groups]
        assert len(heads) == 2
        head_mask = torch.zeros(6, 8, dtype=torch.float64)
        head_mask[heads] = 1
        channel_mask = torch.zeros(28, dtype=torch.float64)
        channel_mask[list(selection.channels[position])] = 1
        layer.self_attn.o_proj.weight *= head_mask.flatten()
        layer.mlp.down_proj.weight *= channel_mask
    apply_selection(model, selection)
    # 2e-16 measured: fewer terms in the sums
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_target_is_met_and_generates(tiny_model, family):
    model = tiny_model(family)
    report = prune_pangu_light(model, PanguLightConfig(target=JOINT), BATCHES)
    plan = ShapePlan.of(model, report.kept_layers, source="pruning")
    assert decoder.layer_shape(model.model.layers[0]) == decoder.LayerShape(4, 2, 8, 20)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (18, 3)
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.shape_before == ModelShape(24, 28, 6, 3, 4)
    assert report.shape_after == ModelShape(18, 20, 4, 2, 3)
    assert report.calibration_tokens == 36
    # per hidden channel: heads of 8 in q, k, v, o and three FFN matrices
    assert report.layers[0].share == pytest.approx(1 - (8 * 2 * (4 + 2) + 3 * 20) / (8 * 2 * (6 + 3) + 3 * 28))
    assert (plan.kind, plan.source, plan.hidden_size) == ("shape", "pruning", 18)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)
    for layer, groups in zip(report.layers, report.selection.groups, strict=True):
        own = [group for donor, group in groups if donor == layer.index]
        assert sorted(head // 2 for head in layer.kept_heads) == sorted(own * 2)
    json.dumps(report.plain())


def test_the_plan_rebuilds_the_shapes_for_the_weights(tiny_model):
    model, fresh = tiny_model("llama"), tiny_model("llama")
    report = prune_pangu_light(model, PanguLightConfig(target=JOINT), BATCHES)
    plan = ShapePlan.of(model, report.kept_layers)
    plan.apply(type("Module", (), {"model": fresh}))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(fresh), logits_of(model))


def test_kept_indices_are_the_best_by_score(tiny_model):
    model = tiny_model("llama")
    selection = select(model, BATCHES, PanguLightConfig(target=JOINT | {"num_attention_heads": 2}, **PLAIN))
    scores = collect_importance(model, BATCHES)

    def best(values, k):
        return tuple(sorted(sorted(range(len(values)), key=lambda i: (-float(values[i]), i))[:k]))

    assert selection.hidden == best(scores.hidden, 18)
    dropped = min((1, 2), key=lambda layer: float(scores.layers[layer]))
    assert selection.layers == tuple(layer for layer in range(4) if layer != dropped)
    for position, layer in enumerate(selection.layers):
        assert selection.channels[position] == best(scores.channels[layer], 20)
        heads = [2 * g + best(scores.heads[layer, 2 * g : 2 * g + 2], 1)[0] for g in range(3)]
        assert list(selection.query_heads[layer]) == heads
        groups = best(scores.heads[layer, heads], 2)  # the group's score is its one retained head's
        assert selection.groups[position] == tuple((layer, group) for group in groups)


def test_slnp_rescales_the_sliced_gains(tiny_model):
    model, unscaled = tiny_model("llama"), tiny_model("llama")
    gain = model.model.norm.weight.detach().clone()
    report = prune_pangu_light(model, PanguLightConfig(target={"hidden_size": 18}), BATCHES)
    prune_pangu_light(unscaled, PanguLightConfig(target={"hidden_size": 18}, slnp="none"), BATCHES)
    factor = report.selection.norm_factors["norm"]
    assert torch.equal(model.model.norm.weight, unscaled.model.norm.weight * factor)
    torch.testing.assert_close(model.model.norm.weight.detach().norm(), gain.norm(), rtol=1e-14, atol=0)
    assert report.norm_factors[0] > 1


def test_adopted_groups_and_untouched_receivers(tiny_model):
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    config = PanguLightConfig(target={"num_hidden_layers": 2}, clap={"score_norm": "layer_mean"})
    report = prune_pangu_light(model, config, BATCHES)
    assert set(report.dropped_layers) == {1, 2}
    for position, layer in enumerate(report.selection.layers):
        kept = before.model.layers[layer]
        same = torch.equal(model.model.layers[position].self_attn.q_proj.weight, kept.self_attn.q_proj.weight)
        assert same == (layer not in report.adopted_groups)
    assert report.adopted_groups.keys() <= {0}
    # the same by hand
    scores = collect_importance(before, BATCHES).heads
    relative = (scores / scores.mean(1, keepdim=True)).view(4, 3, 2).mean(2)[:3].flatten()
    want = {(int(cell) // 3, int(cell) % 3) for cell in relative.topk(3).indices}
    assert set(report.selection.groups[0]) == want


def test_a_selection_is_applied_once_and_to_its_own_weights(tiny_model):
    model = tiny_model("llama")
    selection = select(model, BATCHES, PanguLightConfig(target={"hidden_size": 18}))
    trained = copy.deepcopy(model)
    trained.model.norm.weight.data += 0.1
    with pytest.raises(ValueError, match="made for other weights"):
        apply_selection(trained, selection)
    apply_selection(model, selection)
    with pytest.raises(ValueError, match="it was applied to this model before"):
        apply_selection(model, selection)


def test_a_selection_survives_json(tiny_model):
    model, other = tiny_model("qwen2"), tiny_model("qwen2")
    selection = select(model, BATCHES, PanguLightConfig(target=JOINT))
    read = PanguLightSelection.model_validate_json(selection.model_dump_json())
    assert read == selection
    apply_selection(model, selection)
    apply_selection(other, read)
    assert torch.equal(logits_of(model), logits_of(other))


def test_fingerprint_sees_every_tensor(tiny_model):
    model = tiny_model("llama")
    first = fingerprint(model)
    assert fingerprint(tiny_model("llama")) == first
    for parameter in model.parameters():
        parameter.data += 0.01
        assert fingerprint(model) != first
        first = fingerprint(model)


def test_perplexity_criterion_drops_the_layer_that_costs_least(tiny_model):
    model = tiny_model("llama")
    config = PanguLightConfig(target={"num_hidden_layers": 3}, depth_criterion="ppl", protect_layers=(), **PLAIN)
    candidates = {}
    for layer in range(4):
        shorter = copy.deepcopy(model)
        surgery.keep_layers(shorter, [index for index in range(4) if index != layer])
        candidates[layer] = perplexity(shorter, BATCHES)
    report = prune_pangu_light(model, config, BATCHES)
    assert list(report.dropped_layers) == [min(candidates, key=candidates.__getitem__)]
    assert perplexity(model, BATCHES) == pytest.approx(min(candidates.values()), rel=1e-12)


def test_parameter_budget(tiny_model):
    model = tiny_model("llama")
    report = prune_pangu_light(model, PanguLightConfig(target_params=0.6, round_to=2), BATCHES)
    assert 0.55 < report.parameters_after / report.parameters_before <= 0.6
    assert model.config.hidden_size % 2 == 0


def test_laco_adds_the_differences_of_dropped_layers(tiny_model):
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    config = baseline("laco", PanguLightConfig(target={"num_hidden_layers": 2}))
    report = prune_pangu_light(model, config, BATCHES)
    assert report.selection.layers == (0, 3)
    weights = [layer.mlp.up_proj.weight for layer in before.model.layers]
    want = weights[0] + (weights[1] - weights[0]) + (weights[2] - weights[0])
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, want, rtol=0, atol=1e-14)
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, weights[3])


def test_random_selection_follows_its_seed(tiny_model):
    def picked(seed):
        config = PanguLightConfig(target=JOINT, selection="random", selection_seed=seed)
        return select(tiny_model("llama"), BATCHES, config)

    assert picked(0) == picked(0)
    assert picked(0).hidden != picked(1).hidden
    assert picked(0).layers == picked(1).layers


def test_comparison_of_reinitialisations_leaves_the_model_alone(tiny_model):
    model = tiny_model("llama")
    before = fingerprint(model)
    config = PanguLightConfig(target=JOINT)
    values = compare_reinitialisations(model, BATCHES, config, lambda arm: perplexity(arm, BATCHES))
    assert list(values) == ["dense", "plain", "clap", "slnp", "clap+slnp"]
    assert fingerprint(model) == before
    prune_pangu_light(model, config, BATCHES)
    assert values["clap+slnp"] == perplexity(model, BATCHES)
    assert len(set(values.values())) == 5


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_keep_the_target_and_run(tiny_model, name):
    config = baseline(name, PanguLightConfig(target=JOINT))
    report = prune_pangu_light(tiny_model("llama"), config, iter(BATCHES))
    assert report.shape_after == ModelShape(18, 20, 4, 2, 3)
    if name == "minitron":
        assert (config.agg_batch, config.agg_seq, config.slnp, config.clap.enabled) == ("l2", "mean", "none", False)


def test_depth_alone_is_short_gpt(tiny_model):
    from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig, drop_layers

    model, other = tiny_model("llama"), tiny_model("llama")
    target = {"num_hidden_layers": 2}
    ours = prune_pangu_light(model, PanguLightConfig(target=target, protect_layers=(), **PLAIN), BATCHES)
    theirs = drop_layers(other, ShortGPTConfig(dropped_layers=2), BATCHES)
    assert ours.kept_layers == theirs.kept_layers
    assert torch.equal(logits_of(model), logits_of(other))
    assert [layer.similarity for layer in ours.layers] == pytest.approx([layer.similarity for layer in theirs.layers])


def test_baselines_that_do_not_exist():
    config = PanguLightConfig(target=JOINT)
    with pytest.raises(ValueError, match=r"no baseline 'minitorn'\. Did you mean 'minitron'\?"):
        baseline("minitorn", config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one of target (sizes) and target_params (budget); neither is given"),
        ({"target": {}, "target_params": 0.5}, "both are given"),
        ({"target": {}, "laco": True}, "laco and clap.enabled both merge dropped layers"),
        ({"target": {"hidden": 8}}, "unknown field 'hidden'"),
        ({"target": {}, "slnp": "on"}, "Input should be 'slnp', 'none', 'calibrated' or 'inverse'"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        PanguLightConfig(**fields)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"hidden_size": 30}, "target.hidden_size=30 is larger than the model's 24"),
        ({"num_attention_heads": 4}, "not a multiple of num_key_value_heads=3"),
        ({"num_hidden_layers": 1}, "cannot drop 3 of 4 layers"),
    ],
)
def test_targets_the_model_cannot_reach(tiny_model, target, message):
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        prune_pangu_light(model, PanguLightConfig(target=target), BATCHES)
    assert fingerprint(model) == before


def test_a_model_pruned_layer_by_layer_is_refused(tiny_model):
    model = tiny_model("llama")
    surgery.keep_kv_groups(model.model.layers[2], [0, 1])
    with pytest.raises(ValueError, match="the layers have 2 different shapes"):
        prune_pangu_light(model, PanguLightConfig(target={"hidden_size": 18}), BATCHES)


def test_a_pruned_model_is_not_pruned_again(tiny_model):
    model = tiny_model("llama")
    prune_pangu_light(model, PanguLightConfig(target={"hidden_size": 18}), BATCHES)
    with pytest.raises(ValueError, match=r"already pruned \(by pangu_light\).*prune the original"):
        prune_pangu_light(model, PanguLightConfig(target={"hidden_size": 12}), BATCHES)


def test_unsupported_architectures_are_named():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=61))
    with pytest.raises(ValueError, match="'gpt2'"):
        prune_pangu_light(model, PanguLightConfig(target={"hidden_size": 4}), BATCHES)


def test_defaults_are_the_papers_recipe():
    config = PanguLightConfig(target={})
    assert (config.clap, config.slnp, config.slnp_norms) == (ClapConfig(), "slnp", "all")
    assert config.absorb.order == "heal"
