"""Pangu Light: joint width, depth and head pruning with re-initialisation of the weights that stay (arXiv:2505.20155).

    scores of all axes, one forward pass                         importance.py
    D = layers of lowest score                                   depth.py
    heads, groups, FFN channels, hidden channels to keep         selection.py
    attention of D merged into its neighbours (CLAP)             clap.py
    slices                                                       surgery.py
    norm gains rescaled (SLNP)                                   slnp.py

`prune_pangu_light` does it all; `select` and `apply_selection` are its halves. Recovery by distillation, and
`absorb_post_norms` for sandwich-norm models, come after.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pangu_modules.common.parameters import count_parameters
from pangu_modules.llm.calibration.probe import hidden_norms
from pangu_modules.llm.models import decoder
from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.depth import merge_differences, perplexity_scores, select_dropped_layers
from pangu_modules.llm.pruning.pangu_light import clap
from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig
from pangu_modules.llm.pruning.pangu_light.importance import Importance, collect_importance
from pangu_modules.llm.pruning.pangu_light.report import PanguLightReport, count_tokens, report_of, shape_of_model
from pangu_modules.llm.pruning.pangu_light.selection import (
    PanguLightSelection,
    group_scores,
    random_scores,
    select_query_heads,
    top_k,
)
from pangu_modules.llm.pruning.pangu_light.slnp import slnp_factors, slnp_rescale
from pangu_modules.llm.pruning.pangu_light.target import ModelShape, resolve_target, shape_for_parameters
from pangu_modules.training.objectives import Batch


def prune_pangu_light(model: nn.Module, config: PanguLightConfig, batches: Iterable[Batch]) -> PanguLightReport:
    """Prune the model in place, and say what was done; `ShapePlan.of` is the plan that rebuilds its shapes.

    Args:
        model: a transformers causal LM of a supported architecture, or `SandwichLlamaForCausalLM`.
        config: target and method.
        batches: calibration batches, each with ``input_ids`` (batch, seq) and perhaps ``attention_mask``.

    Raises:
        ValueError: the target or the model does not fit (the message says why), or an activation is not finite.
    """
    calibration = list(batches)
    selection = select(model, calibration, config)
    before, parameters = shape_of_model(model), count_parameters(model)
    apply_selection(model, selection)
    return report_of(model, selection, before, parameters, count_tokens(calibration))


def select(
    model: nn.Module, batches: Sequence[Batch], config: PanguLightConfig, *, scores: Importance | None = None
) -> PanguLightSelection:
    """Score every axis and choose what stays; the model is not changed.

    Args:
        model: as in `prune_pangu_light`.
        batches: as in `prune_pangu_light`.
        config: as in `prune_pangu_light`.
        scores: what `score` returned for another arm with the same scoring, to spare its forward pass.

    Raises:
        ValueError: as `prune_pangu_light`.
    """
    _check_model(model)
    target = _target(model, config)
    scores = score(model, batches, config) if scores is None else scores
    layer_scores = perplexity_scores(model, batches) if config.depth_criterion == "ppl" else scores.layers
    if config.selection == "random":
        scores = random_scores(scores, config.selection_seed)
    num_drop = len(layer_scores) - target.num_hidden_layers
    dropped = select_dropped_layers(
        layer_scores, num_drop, protect=config.protect_layers, allow_adjacent=config.allow_adjacent
    )
    layers = [layer for layer in range(len(layer_scores)) if layer not in dropped]
    heads, groups = _heads_and_groups(scores, shape_of_model(model), target, dropped, config)
    hidden = top_k(scores.hidden, target.hidden_size)
    factors = slnp_factors(model, hidden, mode=config.slnp, norms=config.slnp_norms, batches=batches)
    gone = tuple(f"layers.{layer}." for layer in dropped)
    return PanguLightSelection(
        fingerprint=fingerprint(model),
        layers=tuple(layers),
        query_heads=tuple(tuple(kept) for kept in heads),
        groups=tuple(tuple(groups[layer]) for layer in layers),
        channels=tuple(tuple(top_k(scores.channels[layer], target.intermediate_size)) for layer in layers),
        hidden=tuple(hidden),
        norm_factors={name: factor for name, factor in factors.items() if not name.startswith(gone)},
        block_influence=tuple(scores.layers.tolist()),
        layer_scores=tuple(layer_scores.tolist()),
        fold_gain=config.clap.fold_gain,
        laco=config.laco,
    )


def score(model: nn.Module, batches: Sequence[Batch], config: PanguLightConfig) -> Importance:
    """Return the scores of every axis under the configured aggregation and head score.

    Raises:
        ValueError: the model does not fit, or an activation is not finite.
    """
    _check_model(model)
    return collect_importance(
        model, batches, agg_batch=config.agg_batch, agg_seq=config.agg_seq, head_score=config.head_score
    )


@torch.no_grad()
def apply_selection(model: nn.Module, selection: PanguLightSelection) -> None:
    """Cut the model in place to what the selection keeps, and re-initialise what stays.

    A selection that keeps everything leaves every tensor bit-identical.

    Raises:
        ValueError: the model's weights are not those the selection was made for, as after a first application.
    """
    if fingerprint(model) != selection.fingerprint:
        raise ValueError(
            "the selection was made for other weights: it was applied to this model before, or the model was trained "
            "since; select again, or load the model the selection was made for"
        )
    norms = hidden_norms(model)  # names of the unpruned model; the modules outlive the surgery
    layers = list(decoder.decoder_layers(model))
    shape = shape_of_model(model)
    if selection.laco:
        _merge_dropped(layers, selection.layers)
    for layer, heads in zip(layers, selection.query_heads, strict=True):
        if len(heads) < shape.num_attention_heads:
            surgery.keep_query_heads(layer, heads)
    for index, groups in zip(selection.layers, selection.groups, strict=True):
        clap.merge_groups(layers, index, groups, fold_gain=selection.fold_gain)
    if len(selection.layers) < len(layers):
        surgery.keep_layers(model, selection.layers)
    for index, channels in zip(selection.layers, selection.channels, strict=True):
        if len(channels) < shape.intermediate_size:
            surgery.keep_channels(layers[index], channels)
    if len(selection.hidden) < shape.hidden_size:
        surgery.keep_hidden(model, selection.hidden)
    slnp_rescale(norms, selection.norm_factors)
    surgery.refresh_config(model)
    decoder.backbone(model).config.pruned_with = "pangu_light"


def compare_reinitialisations(
    model: nn.Module, batches: Sequence[Batch], config: PanguLightConfig, evaluate: Callable[[nn.Module], float]
) -> dict[str, float]:
    """Return what `evaluate` (e.g. the perplexity on held-out text) gives dense and for {CLAP, SLNP} x {on, off}.

    Each arm prunes a copy; the model is not changed.
    """
    arms = {
        "plain": {"clap": {"enabled": False}, "slnp": "none"},
        "clap": {"clap": {"enabled": True}, "slnp": "none"},
        "slnp": {"clap": {"enabled": False}, "slnp": "slnp"},
        "clap+slnp": {"clap": {"enabled": True}, "slnp": "slnp"},
    }
    values = {"dense": evaluate(model)}
    scores = score(model, batches, config)
    for name, changes in arms.items():
        arm = copy.deepcopy(model)
        apply_selection(arm, select(model, batches, config.derive(laco=False, **changes), scores=scores))
        values[name] = evaluate(arm)
    return values


def fingerprint(model: nn.Module, samples: int = 64) -> str:
    """Return a hash of every parameter's name, shape and `samples` of its values spread over the tensor."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        values = parameter.detach().flatten()
        picked = values[:: max(1, len(values) // samples)][:samples]
        digest.update(picked.cpu().double().numpy().tobytes())
    return digest.hexdigest()


# Helpers.


def _check_model(model: nn.Module) -> None:
    decoder.check_supported(model)
    method = getattr(decoder.backbone(model).config, "pruned_with", None)
    if method:
        raise ValueError(
            f"the model was already pruned (by {method}): scores are those of the unpruned model; prune the original "
            "model to a smaller target"
        )


def _target(model: nn.Module, config: PanguLightConfig) -> ModelShape:
    if config.target is not None:
        return resolve_target(shape_of_model(model), config.target, round_to=config.round_to)
    assert config.target_params is not None
    source: Any = decoder.backbone(model).config
    return shape_for_parameters(source, config.target_params, round_to=config.round_to)


def _heads_and_groups(
    scores: Importance, shape: ModelShape, target: ModelShape, dropped: Sequence[int], config: PanguLightConfig
) -> tuple[list[list[int]], dict[int, list[clap.Group]]]:
    """Choose query heads first, so that a group's score is the mean over those it retains."""
    num_groups = shape.num_key_value_heads
    heads = [select_query_heads(row, num_groups, target.queries_per_group) for row in scores.heads]
    by_group = torch.stack([group_scores(row, kept, num_groups) for row, kept in zip(scores.heads, heads, strict=True)])
    if config.clap.score_norm == "layer_mean":
        by_group = by_group / scores.heads.mean(1, keepdim=True)
    groups = clap.assign_groups(by_group, dropped, target.num_key_value_heads, adopt=config.clap.enabled)
    return heads, groups


def _merge_dropped(layers: Sequence[nn.Module], kept: Sequence[int]) -> None:
    for position, receiver in enumerate(kept):
        below = 0 if position == 0 else receiver + 1
        above = kept[position + 1] if position + 1 < len(kept) else len(layers)
        dropped = [layers[index] for index in range(below, above) if index != receiver]
        if dropped:
            merge_differences(layers[receiver], dropped)
