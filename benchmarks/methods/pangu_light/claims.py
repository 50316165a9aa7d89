"""Pangu Light's claims on SmolLM2-135M: SLNP, CLAP, importance, recovery; absorption on a sandwich-norm model."""

from __future__ import annotations

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Drop, Gain, Metric, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove
from benchmarks.methods.pangu_light.sandwich_task import DIFFERENCE, sandwich_arms
from benchmarks.methods.pangu_light.task import prune
from benchmarks.methods.pangu_light.variants import DEPTHS, JOINT_TARGET, PARTS, WIDTHS_AND_CHANNELS
from benchmarks.methods.pruning.task import REMOVED, START, TEXT, group_arms


def after(steps: int) -> Metric:
    """Return the metric of the perplexity after so many steps of recovery."""
    return Metric(f"after_{steps}", f"after {steps} steps", digits=2, higher_is_better=False, log_axis=True)


AFTER = {steps: after(steps) for steps in (4, 16, 32)}
WIDTHS = {540: 2.0, 512: 10.0, 450: 25.0}  # least gain of SLNP, in percent
QUICK = "ffn1280"  # the smallest group: parts pruned, without recovery

SETUP = (
    f"{TEXT} 16 steps are 8,192 tokens. Layers 0 and 29 are never dropped. The joint target has 26 of 30 layers, 512 "
    "of 576 hidden and 1280 of 1536 FFN channels. Sandwich norm: a byte model of 6 layers and width 128, trained from "
    "scratch for each seed on the same texts; its perplexities are per byte."
)


def below(id_: str, statement: str, arm: str, over: str, margin: float, metric: Metric = START) -> Claim:
    """Return the claim that an arm's perplexity is at least `margin` percent below another's on every set."""
    return Claim(id_, statement, RelativeGain(metric, arm, over), EverySeedAbove(margin))


def slnp(width: int, margin: float) -> Claim:
    """Return the claim of SLNP at a width."""
    statement = f"SLNP lowers the perplexity at hidden size {width} by at least {margin:g} %, before training"
    return below(f"slnp_{width}", statement, f"w{width}_slnp", f"w{width}_none", margin)


def calibrated(width: int) -> Claim:
    """Return the claim that SLNP needs no calibration at a width."""
    statement = f"SLNP is not worse than factors calibrated on text, at hidden size {width}"
    return below(f"slnp_calibrated_{width}", statement, f"w{width}_slnp", f"w{width}_calibrated", 0)


def channels(plan: int) -> Claim:
    """Return the claim of channels by score against a random plan."""
    statement = f"Hidden channels by score: 50 % below random plan {plan}"
    return below(f"channels_{plan}", statement, "w512_none", f"w512_random{plan}", 50)


def recovers(arm: str) -> Claim:
    """Return the claim of an arm's recovery."""
    statement = f"{arm}: 32 steps of distillation at least halve the perplexity"
    return Claim(f"recovers_{arm}", statement, Drop(AFTER[32], arm, before=START), EverySeedAbove(2))


GATES = (
    *(slnp(width, margin) for width, margin in WIDTHS.items()),
    below("slnp_direction", "SLNP is at least 25 % below its inverse at 512", "w512_slnp", "w512_inverse", 25),
    *(calibrated(width) for width in WIDTHS),
    *(channels(plan) for plan in range(3)),
    below("channels_ffn", "FFN channels by score: at least 50 % below random", "ffn1280", "ffn1280_random", 50),
    below("groups", "KV groups by score: at least 20 % below random", "groups2", "groups2_random", 20),
    below("clap_k3", "6 layers dropped: CLAP at least 6 % below plain removal", "drop6_k3_clap", "drop6_k3_plain", 6),
    below(
        "clap_k2",
        "6 layers dropped, 2 of 3 KV groups: CLAP at least 5 % below plain removal",
        "drop6_k2_clap",
        "drop6_k2_plain",
        5,
    ),
    below(
        "slnp_after",
        "After 32 steps of distillation SLNP is not worse than none by more than 2 %",
        "joint_slnp",
        "joint_none",
        -2,
        AFTER[32],
    ),
    recovers("joint_none"),
    recovers("joint_slnp"),
    below(
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
    below("sigma_low", "Absorption by the root of the mean square: not above the mean", "absorbed_rms", "absorbed", 0),
    below("sigma_high", "Absorption by the mean: not above 1 / mean(1 / RMS)", "absorbed", "absorbed_inverse", 0),
    below("healing", "30 steps heal the absorbed model: at least 15 % below it", "absorbed_healed", "absorbed", 15),
    below(
        "slnp_sandwich",
        "SLNP lowers the perplexity of the sandwich model at width 96 by at least 8 %",
        "sandwich96_slnp",
        "sandwich96_none",
        8,
    ),
)
"""Margins hold on every calibration set."""


def gain(arm: str, over: str, statement: str, metric: Metric = START, paper: str = "") -> Claim:
    """Return what is reported of two arms' perplexities, in percent."""
    suffix = "" if metric is START else f"_{metric.key}"
    return Claim(f"{arm}_over_{over}{suffix}", statement, RelativeGain(metric, arm, over), paper=paper)


def drop_gain(dropped: int, groups: int) -> Claim:
    """Return CLAP's gain with so many layers dropped and KV groups kept."""
    name = f"drop{dropped}_k{groups}"
    statement = f"{dropped} layers dropped, {groups} KV groups: CLAP below plain removal"
    return gain(f"{name}_clap", f"{name}_plain", statement)


def recovery_gain(arm: str, steps: int) -> Claim:
    """Return the gain of an arm with the joint target during recovery."""
    title = {"joint_slnp": "SLNP", "joint_clap": "CLAP"}[arm]
    paper = "gains by CLAP and SLNP together, after training, at 14B (number not public)" if title == "SLNP" else ""
    return gain(arm, "joint_none", f"Joint target after {steps} steps: {title} below none", AFTER[steps], paper)


REPORTED = (
    drop_gain(2, 3),
    drop_gain(2, 2),
    drop_gain(4, 3),
    drop_gain(4, 2),
    *(recovery_gain(arm, steps) for steps in AFTER for arm in ("joint_slnp", "joint_clap")),
    gain("joint_slnp", "joint_none", "Joint target before training: SLNP below none"),
    gain("joint_clap", "joint_none", "Joint target before training: CLAP below none"),
    gain("joint_both", "joint_minitron", "Joint target before training: Pangu Light below Minitron"),
    gain("joint_both", "joint_minitron", "Joint target after 32 steps: Pangu Light below Minitron", AFTER[32]),
    gain("joint_both", "joint_random", "Joint target after 32 steps: Pangu Light below random", AFTER[32]),
    gain("drop6_k2_clap", "drop6_k2_no_fold", "CLAP: gain by folding norm gains"),
    gain("drop6_k2_clap", "drop6_k2_layer_mean", "CLAP: gain by raw scores over scores per layer"),
    gain("drop6_k3_clap", "drop6_k3_laco", "6 layers dropped: CLAP below LaCo's merge"),
    gain("heads6_contribution", "heads6", "Query heads: gain by scoring after o_proj"),
    gain("absorbed", "sandwich", "Absorption without healing, against the sandwich (expected: a loss)"),
    gain("absorbed_healed", "sandwich_continued", "Absorbed and healed, against the sandwich trained as long"),
)
"""Without a gate: losses, parities, ingredients."""


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature eight layers and little text."""
    return Method(
        name="pangu_light",
        title="Pangu Light: width, depth and heads pruned, weights re-initialised",
        source="arXiv:2505.20155",
        setup=SETUP,
        arms=arms(miniature),
        claims=GATES + REPORTED,
        metrics=(START, *AFTER.values(), REMOVED),
        figure=(START,),
        seeds=3,
        quick=QUICK,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms, group by group."""
    groups = (WIDTHS_AND_CHANNELS, PARTS, DEPTHS, JOINT_TARGET)
    pruned = tuple(arm for group in groups for arm in group_arms(group, prune, miniature=miniature))
    return pruned + sandwich_arms(miniature)
