"""The whole SlimLLM walk against a slow reference: full forward passes, tokens in loops, masks instead of surgery."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning.slimllm import walk as slimllm
from pangu_modules.llm.pruning.slimllm.config import BASELINES, SlimLLMConfig
from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

HEADS, HEAD_DIM, CHANNELS = 6, 8, 28  # of the tiny models in conftest.py


def calibration(padded: bool = True):
    """Two batches; the second one is padded on the right."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, 61, (5, 16), generator=generator)
    mask = torch.ones(2, 16, dtype=torch.long)
    if padded:
        mask[0, 9:] = 0
        mask[1, 13:] = 0
    second = ids[3:].masked_fill(mask == 0, 0)
    return [{"input_ids": ids[:3]}, {"input_ids": second, "attention_mask": mask}]


def captured(model, module, of_input, batches):
    """Run the whole model and return the input or output of one module on all real tokens, (tokens, size)."""
    seen = []
    handle = module.register_forward_hook(
        lambda m, args, output: seen.append((args[0] if of_input else output).detach().flatten(0, 1))
    )
    rows = []
    for batch in batches:
        with torch.no_grad():
            model(**batch)
        mask = batch.get("attention_mask")
        values = seen.pop()
        rows.append(values if mask is None else values[mask.flatten().bool()])
    handle.remove()
    return torch.cat(rows).numpy()


def similarity(parts, kept):
    whole, some = sum(parts), sum(parts[i] for i in kept)
    return sum(
        abs(np.corrcoef(some[:, d], whole[:, d])[0, 1]) if some[:, d].std() * whole[:, d].std() > 0 else 0.0
        for d in range(whole.shape[1])
    )


def choose_units(parts, num_remove):
    units = list(range(len(parts)))
    without = [similarity(parts, [j for j in units if j != i]) for i in units]
    removed = sorted(units, key=lambda i: -without[i])[:num_remove]
    kept = [i for i in units if i not in removed]
    best = similarity(parts, kept)
    for newcomer in removed:
        new = kept
        for place in range(len(kept)):
            trial = [*kept[:place], newcomer, *kept[place + 1 :]]
            if similarity(parts, trial) > best:
                best, new = similarity(parts, trial), trial
        kept = new
    return sorted(kept)


def mask_and_refit(linear, kept_columns, z, affine):
    """Zero the removed columns; fit every output dimension with polyfit and fold."""
    weight = linear.weight.detach().numpy().copy()
    bias = np.zeros(len(weight)) if linear.bias is None else linear.bias.detach().numpy()
    whole = z @ weight.T + bias
    removed = [c for c in range(weight.shape[1]) if c not in set(kept_columns)]
    weight[:, removed] = 0
    if affine:
        pruned = z @ weight.T + bias
        fits = [np.polyfit(pruned[:, d], whole[:, d], 1) for d in range(len(weight))]
        bias = np.array([a * bias[d] + b for d, (a, b) in enumerate(fits)])
        weight = np.array([a * weight[d] for d, (a, _) in enumerate(fits)])
        linear.bias = nn.Parameter(torch.tensor(bias))
    linear.weight.data = torch.tensor(weight)


def slow_slimllm(model, batches, config):
    """Prune a copy by masking; return it with the kept heads and channels of every layer."""
    reference = copy.deepcopy(model)
    cosines = []
    for layer in reference.model.layers:
        before, after = (captured(reference, layer, of_input, batches) for of_input in (True, False))
        cosines.append(
            np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before, after, strict=True)])
        )
    chosen = sorted(range(len(cosines)), key=lambda i: -cosines[i])[: config.pruned_layers]
    exponentials = {i: np.exp(config.alpha * cosines[i]) for i in chosen}
    kept = []
    for index, layer in enumerate(reference.model.layers):
        if index not in chosen:
            kept.append((list(range(HEADS)), list(range(CHANNELS))))
            continue
        share = config.base_share * len(chosen) * exponentials[index] / sum(exponentials.values())
        output = layer.self_attn.o_proj
        z = captured(reference, output, True, batches)
        num_groups = decoder.layer_shape(layer).num_kv_heads
        blocks = np.split(np.arange(HEADS * HEAD_DIM), num_groups)
        weight = output.weight.detach().numpy()
        groups = choose_units([z[:, b] @ weight[:, b].T for b in blocks], int(share * num_groups + 0.5))
        mask_and_refit(output, np.concatenate([blocks[g] for g in groups]), z, config.recovery == "affine")
        down, mlp = layer.mlp.down_proj, layer.mlp
        x, z, y = (
            captured(reference, module, of_input, batches)
            for module, of_input in ((mlp, True), (down, True), (down, False))
        )
        scores = channel_importance(mlp, x, z, y)
        order = sorted(range(CHANNELS), key=lambda j: scores[j])
        gone = order[int(0.05 * CHANNELS + 0.5) :][: int(share * CHANNELS + 0.5)]
        channels = [j for j in range(CHANNELS) if j not in gone]
        mask_and_refit(down, channels, z, config.recovery == "affine")
        size = HEADS // num_groups
        kept.append(([g * size + i for g in groups for i in range(size)], channels))
    return reference, kept


def channel_importance(mlp, x, z, y):
    gate, up, down = (linear.weight.detach().numpy() for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    norm = np.linalg.norm(x, axis=0)
    centred = y - y.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    weights = 1 / (1 + np.exp(-np.abs(values) / np.abs(values).mean()))
    return [
        np.linalg.norm(gate[j] * norm)
        + np.linalg.norm(up[j] * norm)
        + np.linalg.norm(z[:, j]) * np.linalg.norm(np.abs(down[:, j] @ vectors) * weights)
        for j in range(CHANNELS)
    ]


CONFIG = SlimLLMConfig(
    base_share=0.4, pruned_layers=3, alpha=2, keep_least_share=0.05, balance_to_target=False, max_layer_share=0.9
)


def logits_of(model):
    ids = calibration()[0]["input_ids"]
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("recovery", ["affine", "none"])
@pytest.mark.parametrize(
    ("family", "groups"), [("llama", 3), ("llama", 6), ("llama_bias", 3), ("qwen2", 3), ("qwen3", 3), ("mistral", 6)]
)
def test_the_walk_equals_the_slow_reference(tiny_model, family, groups, recovery):
    model = tiny_model(family, num_key_value_heads=groups)
    config = CONFIG.derive(recovery=recovery)
    reference, kept = slow_slimllm(model, calibration(), config)
    report = prune_slimllm(model, config, calibration())
    assert [(list(entry.kept_heads), list(entry.kept_channels)) for entry in report.layers] == kept
    assert any(len(heads) < HEADS for heads, _ in kept)
    # measured 0: norms round to float32; the margin is for one value that rounds the other way (6e-8 of it)
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-6)


def test_the_report_counts_parameters_and_layers(tiny_model):
    model = tiny_model("llama", tied=True)
    before = sum(parameter.numel() for parameter in model.parameters())
    report = prune_slimllm(model, CONFIG, calibration())
    assert report.parameters_before == before
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.calibration_tokens == 3 * 16 + 9 + 13
    untouched = [entry for entry in report.layers if entry.share == 0]
    assert len(untouched) == 1
    assert untouched[0].similarity == min(entry.similarity for entry in report.layers)
    assert all(0 < entry.head_similarity <= 1 for entry in report.layers if len(entry.kept_heads) < HEADS)
    assert report.plain()["layers"][0]["index"] == 0


def test_padding_does_not_enter_the_statistics(tiny_model):
    """Left-over values under the padding must not matter: other tokens there, same result."""
    results = []
    for filler in (0, 40):
        model = tiny_model("llama")
        batches = calibration()
        mask = batches[1]["attention_mask"]
        batches[1]["input_ids"] = batches[1]["input_ids"].masked_fill(mask == 0, filler)
        prune_slimllm(model, CONFIG, batches)
        results.append(logits_of(model))
    assert torch.equal(*results)


def test_ratio_zero_changes_nothing(tiny_model):
    model = tiny_model("llama")
    before = logits_of(model)
    report = prune_slimllm(model, CONFIG.derive(base_share=0), calibration())
    assert torch.equal(logits_of(model), before)
    assert report.removed_share == 0


@pytest.mark.parametrize("recovery", ["bias", "full_ridge"])
def test_other_repairs_lower_the_error_of_every_sublayer(tiny_model, recovery):
    """On the calibration tokens a repair can only help the sub-layer it repairs; the last FFN shows it at the end."""
    config = CONFIG.derive(head_unit="none", pruned_layers=1, base_share=0.5, alpha=0, ridge=1e-9)
    errors = {}
    dense = tiny_model("llama")
    for name in ("none", "affine", recovery):
        model = copy.deepcopy(dense)
        report = prune_slimllm(model, config.derive(recovery=name), calibration())
        index = next(entry.index for entry in report.layers if entry.share > 0)
        error = captured(model, model.model.layers[index], False, calibration())
        error = error - captured(dense, dense.model.layers[index], False, calibration())
        errors[name] = (error**2).sum()
        if name == "bias":
            np.testing.assert_allclose(error.mean(0), 0, atol=1e-12)
    assert errors[recovery] < errors["none"]
    assert errors["affine"] < errors["none"]
    if recovery == "full_ridge":
        assert errors["full_ridge"] < errors["affine"]
    else:
        assert errors["affine"] < errors["bias"]


def test_full_ridge_repairs_heads_as_least_squares(tiny_model):
    model = tiny_model("llama_bias")
    dense = copy.deepcopy(model)
    config = CONFIG.derive(recovery="full_ridge", ridge=1e-9, ffn_unit="none", pruned_layers=4, alpha=0)
    report = prune_slimllm(model, config, calibration())
    z = captured(dense, dense.model.layers[0].self_attn.o_proj, True, calibration())
    columns = [head * HEAD_DIM + i for head in report.layers[0].kept_heads for i in range(HEAD_DIM)]
    target = z @ dense.model.layers[0].self_attn.o_proj.weight.detach().numpy().T
    want = np.linalg.lstsq(z[:, columns], target, rcond=None)[0].T
    got = model.model.layers[0].self_attn.o_proj.weight.detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)  # measured 1e-7: the ridge of 1e-9


def test_one_ratio_for_all_layers_needs_no_dense_pass(tiny_model, monkeypatch):
    config = CONFIG.derive(alpha=0, pruned_layers=4)
    reference, kept = slow_slimllm(tiny_model("llama"), calibration(), config)
    monkeypatch.delattr(slimllm, "layer_similarities")
    model = tiny_model("llama")
    report = prune_slimllm(model, config, calibration())
    assert [(list(entry.kept_heads), list(entry.kept_channels)) for entry in report.layers] == kept
    assert {(entry.similarity, entry.share) for entry in report.layers} == {(None, config.base_share)}
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=0, atol=1e-6)  # measured below 1e-9


def test_query_heads_go_in_equal_numbers_from_every_group(tiny_model):
    model = tiny_model("llama")
    report = prune_slimllm(model, CONFIG.derive(head_unit="query", base_share=0.5, alpha=0), calibration())
    for entry, layer in zip(report.layers, model.model.layers, strict=True):
        if entry.share:
            assert [head // 2 for head in entry.kept_heads] == [0, 1, 2]
            assert decoder.layer_shape(layer) == decoder.LayerShape(3, 3, HEAD_DIM, len(entry.kept_channels))


def test_balance_moves_the_rounding_of_groups_to_the_ffn(tiny_model):
    config = CONFIG.derive(balance_to_target=True, base_share=0.25, alpha=0, pruned_layers=4, recovery="none")
    model = tiny_model("llama")
    dense = sum(p.numel() for n, p in model.model.layers.named_parameters() if "norm" not in n)
    prune_slimllm(model, config, calibration())
    pruned = sum(p.numel() for n, p in model.model.layers.named_parameters() if "norm" not in n)
    # one group of three is 0.333 of the attention; a channel is 0.011 of a layer
    assert 1 - pruned / dense == pytest.approx(0.25, abs=0.006)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_runs_in_the_same_walk(tiny_model, name):
    model = tiny_model("qwen3")
    config = CONFIG.derive(**BASELINES[name])
    report = prune_slimllm(model, config, calibration())
    again = tiny_model("qwen3")
    assert prune_slimllm(again, config, calibration()) == report
    assert report.removed_share > 0
    assert bool(torch.isfinite(logits_of(model)).all())
    assert torch.equal(logits_of(model), logits_of(again))
    assert decoder.output_biases(model.model.layers[report.layers[-1].index])[0] is False or name == "flap"


class Killed(Exception):
    pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_killed_walk_continues_at_the_next_layer(tiny_model, tmp_path, monkeypatch, dtype):
    whole = tiny_model("qwen2").to(dtype)
    report = prune_slimllm(whole, CONFIG, calibration(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    original = slimllm._prune_layer
    visited = []

    def killed_at_layer_2(layer, index, *rest):
        visited.append(index)
        if index == 2 and len(visited) == 3:
            raise Killed
        return original(layer, index, *rest)

    monkeypatch.setattr(slimllm, "_prune_layer", killed_at_layer_2)
    with pytest.raises(Killed):
        prune_slimllm(tiny_model("qwen2").to(dtype), CONFIG, calibration(), tmp_path)
    resumed = tiny_model("qwen2").to(dtype)
    assert prune_slimllm(resumed, CONFIG, calibration(), tmp_path) == report
    assert visited == [0, 1, 2, 2, 3]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert list(tmp_path.iterdir()) == []


def test_progress_of_another_run_is_not_taken_up(tiny_model, tmp_path, monkeypatch):
    original = slimllm._prune_layer

    def killed(layer, index, *rest):
        if index == 2:
            raise Killed
        return original(layer, index, *rest)

    monkeypatch.setattr(slimllm, "_prune_layer", killed)
    with pytest.raises(Killed):
        prune_slimllm(tiny_model("llama"), CONFIG, calibration(), tmp_path)
    monkeypatch.setattr(slimllm, "_prune_layer", original)
    other = CONFIG.derive(base_share=0.3)
    want = prune_slimllm(tiny_model("llama"), other, calibration())
    assert prune_slimllm(tiny_model("llama"), other, calibration(), tmp_path) == want


def test_pruning_leaves_mode_and_gradient_flags_as_they_were(tiny_model):
    model = tiny_model("llama").train()
    model.model.layers[1].requires_grad_(False)
    prune_slimllm(model, CONFIG.derive(**BASELINES["llm_pruner"]), calibration())
    assert model.training
    flags = [{p.requires_grad for p in layer.parameters()} for layer in model.model.layers]
    assert flags == [{True}, {False}, {True}, {True}]


def nan_in_layer_2(model):
    model.model.layers[2].mlp.up_proj.weight.data[3] = float("nan")


@pytest.mark.parametrize(
    ("prepare", "changes", "batches", "message"),
    [
        (None, {"pruned_layers": 9}, calibration(), "pruned_layers=9, but the model has only 4 layers"),
        (None, {}, [], "no calibration batch: is the calibration text shorter than one window"),
        (nan_in_layer_2, {}, calibration(), "layer 2: the output has NaN or infinite values"),
        (None, {"base_share": 0.93}, calibration(), "base_share=0.93 exceeds max_layer_share=0.9"),
        (
            None,
            {},
            [{"input_ids": torch.tensor([[5, 6, 7, 0]])}],
            "batch 0 has padding (token 0) but no attention_mask",
        ),
        (
            None,
            {},
            [{"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.zeros(1, 2)}],
            "batch 0 has no real token",
        ),
    ],
)
def test_bad_input_is_named(tiny_model, prepare, changes, batches, message):
    model = tiny_model("llama")
    if prepare:
        prepare(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        prune_slimllm(model, CONFIG.derive(**changes), batches)


def test_ratios_that_leave_nothing_name_the_layer(tiny_model):
    plain = tiny_model("llama", num_key_value_heads=6)
    config = CONFIG.derive(base_share=0.93, max_layer_share=0.95, alpha=0, pruned_layers=4)
    with pytest.raises(ValueError, match=r"layer 0: a share of 0.930 leaves none of 6 heads, at least 1 must stay"):
        prune_slimllm(plain, config, calibration())
    narrow = tiny_model("llama", intermediate_size=3)
    with pytest.raises(ValueError, match=r"layer 0: a share of 0.930 leaves none of 3 FFN channels"):
        prune_slimllm(narrow, config.derive(balance_to_target=False), calibration())


def test_a_pruned_model_is_refused(tiny_model):
    model = tiny_model("llama")
    prune_slimllm(model, CONFIG.derive(base_share=0.0), calibration())
    with pytest.raises(ValueError, match=r"already pruned \(by slimllm\).*larger base_share"):
        prune_slimllm(model, CONFIG, calibration())


def test_few_tokens_for_the_feature_space_are_warned_about(tiny_model):
    with pytest.warns(UserWarning, match="32 calibration tokens for hidden size 24: below 48"):
        prune_slimllm(tiny_model("llama"), CONFIG, [{"input_ids": calibration()[0]["input_ids"][:2]}])


@pytest.mark.parametrize("field", ["base_share", "alpha", "keep_least_share", "max_layer_share", "ridge"])
def test_the_configuration_refuses_impossible_numbers(field):
    with pytest.raises(ValueError, match=field):
        SlimLLMConfig(**{field: -0.5})
