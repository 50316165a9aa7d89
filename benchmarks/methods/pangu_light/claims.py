"""Pangu Light's claims on SmolLM2-135M: SLNP, CLAP, importance, recovery; absorption on a sandwich-norm model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Drop, Gain, Metric, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove
from benchmarks.methods.pangu_light.sandwich_task import DIFFERENCE, sandwich_arms
from benchmarks.methods.pruning.task import REMOVED, START, TEXT, Texts, Variant, group_arms

if TYPE_CHECKING:
    from torch import nn


def after(steps: int) -> Metric:
    """Return the metric of the perplexity after so many steps of recovery."""
    return Metric(f"after_{steps}", f"after {steps} steps", digits=2, higher_is_better=False, log_axis=True)


AFTER = {steps: after(steps) for steps in (4, 16, 32)}
JOINT = {"layers_removed": 4, "hidden_size": 512, "intermediate_size": 1280}
WIDTHS = {540: 2.0, 512: 10.0, 450: 25.0}  # least gain of SLNP, in percent
OFF: dict[str, Any] = {"clap": {"enabled": False}, "slnp": "none"}
CLAP: dict[str, Any] = {"clap": {"enabled": True}, "slnp": "none"}
SLNP: dict[str, Any] = {"clap": {"enabled": False}, "slnp": "slnp"}

SETUP = (
    f"{TEXT} 16 steps are 8,192 tokens. Layers 0 and 29 are never dropped. The joint target has 26 of 30 layers, 512 "
    "of 576 hidden and 1280 of 1536 FFN channels. Sandwich norm: a byte model of 6 layers and width 128, trained from "
    "scratch for each seed on the same texts; its perplexities are per byte."
)


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature eight layers and little text."""
    return Method(
        name="pangu_light",
        title="Pangu Light: width, depth and heads pruned, weights re-initialised",
        source="arXiv:2505.20155",
        setup=SETUP,
        arms=arms(miniature),
        claims=gates() + reported(),
        metrics=(START, *AFTER.values(), REMOVED),
        figure=(START,),
        seeds=3,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms, group by group."""
    groups = (width_variants(), part_variants(), depth_variants(), joint_variants())
    pruned = tuple(arm for group in groups for arm in group_arms(group, prune, miniature=miniature))
    return pruned + sandwich_arms(miniature)


def width_variants() -> list[Variant]:
    """Return the factors on norm gains at three widths, and random channels."""
    variants = []
    for width in WIDTHS:
        for mode in ("none", "slnp", "calibrated", *(["inverse"] if width == 512 else [])):
            title = f"hidden size {width}, norm gains: {mode}"
            variants.append(Variant(f"w{width}_{mode}", title, {**OFF, "slnp": mode, "hidden_size": width}))
    for number in range(3):
        config = {**OFF, "hidden_size": 512, "selection": "random", "selection_seed": number}
        variants.append(Variant(f"w512_random{number}", f"hidden size 512, random channels {number}", config))
    return variants


def part_variants() -> list[Variant]:
    """Return FFN channels and heads by score and at random."""
    ffn, groups, heads = {"intermediate_size": 1280}, {"num_key_value_heads": 2}, {"num_attention_heads": 6}
    return [
        Variant("ffn1280", "1280 of 1536 FFN channels by score", {**OFF, **ffn}),
        Variant("ffn1280_random", "1280 of 1536 FFN channels at random", {**OFF, **ffn, "selection": "random"}),
        Variant("groups2", "2 of 3 KV groups by score", {**OFF, **groups}),
        Variant("groups2_random", "2 of 3 KV groups at random", {**OFF, **groups, "selection": "random"}),
        Variant("heads6", "6 of 9 query heads by output norm", {**OFF, **heads}, seeds=1),
        Variant(
            "heads6_contribution",
            "6 of 9 query heads by norm after o_proj",
            {**OFF, **heads, "head_score": "contribution"},
            seeds=1,
        ),
    ]


def depth_variants() -> list[Variant]:
    """Return dropped layers with and without CLAP, with three and two KV groups; the strongest case is recovered."""
    variants = []
    for dropped in (6, 4, 2):
        for groups in (2, 3):
            steps = (4, 16) if (dropped, groups) == (6, 2) else ()
            config: dict[str, Any] = {"layers_removed": dropped, "num_key_value_heads": groups}
            title = f"{dropped} layers dropped, {groups} KV groups"
            name = f"drop{dropped}_k{groups}"
            variants.append(Variant(f"{name}_plain", title, {**OFF, **config}, steps))
            variants.append(Variant(f"{name}_clap", f"{title}, CLAP", {**CLAP, **config}, steps))
    config = {"layers_removed": 6, "num_key_value_heads": 2, "slnp": "none"}
    title = "6 layers dropped, 2 KV groups"
    unfolded, normed = {"fold_gain": False}, {"score_norm": "layer_mean"}
    return [
        *variants,
        Variant("drop6_k2_no_fold", f"{title}, CLAP without folding gains", {**config, "clap": unfolded}, seeds=1),
        Variant("drop6_k2_layer_mean", f"{title}, CLAP, scores per layer", {**config, "clap": normed}, seeds=1),
        Variant(
            "drop6_k3_laco", "6 layers dropped and merged (LaCo)", {**OFF, "layers_removed": 6, "laco": True}, seeds=1
        ),
    ]


def joint_variants() -> list[Variant]:
    """Return the joint target: SLNP on and off on all sets, everything else on the first."""
    steps = (4, 16, 32)
    minitron = {"agg_batch": "l2", "agg_seq": "mean"}
    return [
        Variant("joint_slnp", "joint target, SLNP", {**SLNP, **JOINT}, steps),
        Variant("joint_none", "joint target, neither", {**OFF, **JOINT}, steps),
        Variant("joint_clap", "joint target, CLAP", {**CLAP, **JOINT}, steps, seeds=1),
        Variant("joint_both", "joint target, CLAP and SLNP (Pangu Light)", {**JOINT, "slnp": "slnp"}, steps, seeds=1),
        Variant("joint_minitron", "joint target, Minitron's aggregation", {**OFF, **JOINT, **minitron}, steps, seeds=1),
        Variant("joint_random", "joint target, at random", {**OFF, **JOINT, "selection": "random"}, steps, seeds=1),
    ]


def prune(model: nn.Module, config: Mapping[str, Any], texts: Texts, seed: int) -> None:
    """Prune a model as a variant's config says; scores of the unpruned model are shared within a group."""
    from pangu_modules.llm.pruning import surgery
    from pangu_modules.llm.pruning.pangu_light import pipeline as pangu_light
    from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig

    settings = dict(config)
    axes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    target = {axis: settings.pop(axis) for axis in axes if axis in settings}
    layers = len(surgery.decoder_layers(model)) - settings.pop("layers_removed", 0)
    settings.setdefault("selection_seed", seed)
    method = PanguLightConfig(target={**target, "num_hidden_layers": layers}, **settings)
    key = f"{method.agg_batch} {method.agg_seq} {method.head_score}"
    if key not in texts.shared:
        texts.shared[key] = pangu_light.score(model, texts.batches, method)
    selection = pangu_light.select(model, texts.batches, method, scores=texts.shared[key])
    pangu_light.apply_selection(model, selection)


def gates() -> tuple[Claim, ...]:
    """Return the claims that get a verdict: margins hold on every calibration set."""

    def lower(id_: str, statement: str, arm: str, over: str, margin: float, metric: Metric = START) -> Claim:
        return Claim(id_, statement, RelativeGain(metric, arm, over), EverySeedAbove(margin))

    widths = [
        lower(
            f"slnp_{width}",
            f"SLNP lowers the perplexity at hidden size {width} by at least {margin:g} %, before training",
            f"w{width}_slnp",
            f"w{width}_none",
            margin,
        )
        for width, margin in WIDTHS.items()
    ]
    calibrated = [
        lower(
            f"slnp_calibrated_{width}",
            f"SLNP is not worse than factors calibrated on text, at hidden size {width}",
            f"w{width}_slnp",
            f"w{width}_calibrated",
            0,
        )
        for width in WIDTHS
    ]
    random = [
        lower(
            f"channels_{n}", f"Hidden channels by score: 50 % below random plan {n}", "w512_none", f"w512_random{n}", 50
        )
        for n in range(3)
    ]
    recovered = [
        Claim(
            f"recovers_{arm}",
            f"{arm}: 32 steps of distillation at least halve the perplexity",
            Drop(AFTER[32], arm, before=START),
            EverySeedAbove(2),
        )
        for arm in ("joint_none", "joint_slnp")
    ]
    return (
        *widths,
        lower("slnp_direction", "SLNP is at least 25 % below its inverse at 512", "w512_slnp", "w512_inverse", 25),
        *calibrated,
        *random,
        lower("channels_ffn", "FFN channels by score: at least 50 % below random", "ffn1280", "ffn1280_random", 50),
        lower("groups", "KV groups by score: at least 20 % below random", "groups2", "groups2_random", 20),
        lower(
            "clap_k3", "6 layers dropped: CLAP at least 6 % below plain removal", "drop6_k3_clap", "drop6_k3_plain", 6
        ),
        lower(
            "clap_k2",
            "6 layers dropped, 2 of 3 KV groups: CLAP at least 5 % below plain removal",
            "drop6_k2_clap",
            "drop6_k2_plain",
            5,
        ),
        lower(
            "slnp_after",
            "After 32 steps of distillation SLNP is not worse than none by more than 2 %",
            "joint_slnp",
            "joint_none",
            -2,
            AFTER[32],
        ),
        *recovered,
        lower(
            "clap_after",
            "6 layers dropped, 2 KV groups: CLAP not above plain removal after 16 steps",
            "drop6_k2_clap",
            "drop6_k2_plain",
            0,
            AFTER[16],
        ),
        Claim(
            "absorbed_is_llama",
            "The absorbed sandwich model loads into a plain Llama that computes the same (logits within 1e-5)",
            Gain(DIFFERENCE, "absorbed", "sandwich"),
            EverySeedAbove(-1e-5),
        ),
        lower(
            "sigma_low", "Absorption by the root of the mean square: not above the mean", "absorbed_rms", "absorbed", 0
        ),
        lower("sigma_high", "Absorption by the mean: not above 1 / mean(1 / RMS)", "absorbed", "absorbed_inverse", 0),
        lower("healing", "30 steps heal the absorbed model: at least 15 % below it", "absorbed_healed", "absorbed", 15),
        lower(
            "slnp_sandwich",
            "SLNP lowers the perplexity of the sandwich model at width 96 by at least 8 %",
            "sandwich96_slnp",
            "sandwich96_none",
            8,
        ),
    )


def reported() -> tuple[Claim, ...]:
    """Return what is measured and has no gate: losses, parities, ingredients."""

    def lower(arm: str, over: str, statement: str, metric: Metric = START, paper: str = "") -> Claim:
        suffix = "" if metric is START else f"_{metric.key}"
        return Claim(f"{arm}_over_{over}{suffix}", statement, RelativeGain(metric, arm, over), paper=paper)

    gain = "gains by CLAP and SLNP together, after training, at 14B (number not public)"
    claims = [
        lower(
            f"drop{dropped}_k{groups}_clap",
            f"drop{dropped}_k{groups}_plain",
            f"{dropped} layers dropped, {groups} KV groups: CLAP below plain removal",
        )
        for dropped in (2, 4)
        for groups in (3, 2)
    ]
    for steps, metric in AFTER.items():
        claims.append(
            lower("joint_slnp", "joint_none", f"Joint target after {steps} steps: SLNP below none", metric, gain)
        )
        claims.append(lower("joint_clap", "joint_none", f"Joint target after {steps} steps: CLAP below none", metric))
    return (
        *claims,
        lower("joint_slnp", "joint_none", "Joint target before training: SLNP below none"),
        lower("joint_clap", "joint_none", "Joint target before training: CLAP below none"),
        lower("joint_both", "joint_minitron", "Joint target before training: Pangu Light below Minitron"),
        lower("joint_both", "joint_minitron", "Joint target after 32 steps: Pangu Light below Minitron", AFTER[32]),
        lower("joint_both", "joint_random", "Joint target after 32 steps: Pangu Light below random", AFTER[32]),
        lower("drop6_k2_clap", "drop6_k2_no_fold", "CLAP: gain by folding norm gains"),
        lower("drop6_k2_clap", "drop6_k2_layer_mean", "CLAP: gain by raw scores over scores per layer"),
        lower("drop6_k3_clap", "drop6_k3_laco", "6 layers dropped: CLAP below LaCo's merge"),
        lower("heads6_contribution", "heads6", "Query heads: gain by scoring after o_proj"),
        lower("absorbed", "sandwich", "Absorption without healing, against the sandwich (expected: a loss)"),
        lower("absorbed_healed", "sandwich_continued", "Absorbed and healed, against the sandwich trained as long"),
    )
