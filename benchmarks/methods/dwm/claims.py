"""DWM's claims on mixed text: weights learned by bi-level optimization against other weights (arXiv:2507.16178)."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Below, Gain, Magnitude, Metric, Ratio, RecoveredShare, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove, MeanAbove
from benchmarks.methods.dwm.rows import CLEAN, PAIR, ROUNDS, STEPS, WIDE_STEPS, SmolLM2, Text, mixed, reported

SEEDS = 3
SELECTION = {"selection": "dsir", "keep": 0.75}  # with half, windows would repeat in so many steps
TRANSFER_LIMIT = 0.1

LOSS = Metric("test/loss", "test loss", "nats", higher_is_better=False)
WEIGHT = Metric("noise_weight", "mean weight of noise", digits=2, higher_is_better=False)
ESS = Metric("ess", "effective share of the batch", digits=2)
SHIFT = Metric("shift", "change of the hard domain's weight", "standard errors", digits=1)
OVERHEAD = Metric("overhead", "CPU time of weighing, share of a step", "%", scale=100, digits=1, higher_is_better=False)

SETUP = (
    "A Llama of 4 layers and width 128 from scratch, AdamW, learning rate 2e-3 with a cosine, batches of 16 windows of "
    f"64 tokens of a byte-level BPE with 1024 tokens, {STEPS} steps for all arms unless said otherwise. Half of the "
    "windows are prose of the King James Bible, a quarter have its tokens in random order, a quarter are random "
    "characters. Target and test are held-out prose, about 35 chapters each, drawn anew for each seed; windows that "
    "share 16 tokens in a row with a split before them (test, target, training) are left out. DWM learns in "
    f"{ROUNDS - 1} of {ROUNDS} rounds on the target, from the profile of each sequence's token losses; the offline "
    "baselines see the same target and keep half of the data. In the two-domain arms target and test are half "
    "prose, half sentences of one form with random numbers; the arms on a selection train on the three quarters of the "
    "windows that DSIR draws; the wide arms have twice the width and take "
    f"{WIDE_STEPS} steps. SmolLM2-135M goes on training for 60 steps of 8 x 128 tokens, learning rate 1e-4, on prose "
    "(the reference texts of Python's help system), that prose with its words shuffled, and in an invented language "
    "(letters exchanged by a fixed cipher), 2:1:1."
)

FROZEN_EARLY: dict[str, Any] = {"freeze_after_round": 1}

ARMS = (
    mixed("uniform", "uniform weights", "uniform"),
    mixed("dwm", "DWM"),
    mixed("random", "random, DWM's effective batch", "random", ess_from="dwm"),
    Text(name="oracle", description="clean data alone, uniform", method="uniform", data=CLEAN),
    Text(name="clean_dwm", description="clean data alone, DWM", data=CLEAN),
    mixed("wide", "twice the width, uniform", "uniform", wide=True),
    mixed(
        "wide_transfer",
        "twice the width, DWM's weighting models",
        wide=True,
        frozen_from="dwm",
        time_overhead=True,
    ),
    mixed("selected", "DSIR's selection, uniform", "uniform", selection=SELECTION),
    mixed("selected_transfer", "DSIR's selection, DWM's weighting models", selection=SELECTION, frozen_from="dwm"),
    Text(name="pair_uniform", description="two useful domains, uniform", method="uniform", data=PAIR),
    Text(name="pair_dwm", description="two useful domains, DWM", data=PAIR, options={"followed": "hard"}),
    Text(
        name="pair_static",
        description="two useful domains, DWM after its first round",
        fields=FROZEN_EARLY,
        data=PAIR,
    ),
    reported("static", "DWM frozen after its first round", **FROZEN_EARLY),
    reported("per_sample", "DWM, each sequence alone", method={"model": {"num_mix": 0}}),
    reported("loss_high", "by loss, high preferred", "loss", prefer="high"),
    reported("loss_low", "by loss, low preferred", "loss", prefer="low"),
    reported("perplexity", "half of lowest perplexity under bigrams", "perplexity"),
    reported("dsir", "half drawn by n-gram importance (DSIR)", "dsir"),
    reported("influence", "half of largest predicted influence, chosen in each round (as MATES)", "influence"),
    reported("classifier", "half a classifier takes for the target", "classifier"),
)
"""First the arms that gates need, on all seeds; then those that are only reported."""
SMOLLM2_ARMS = (
    SmolLM2("smollm2_uniform", "SmolLM2, uniform weights", {"method": {"kind": "uniform"}, "num_rounds": 6}),
    SmolLM2("smollm2_dwm", "SmolLM2, DWM"),
)
QUICK = "static"  # DWM in two minutes; the gated arm takes three and a half


def gain(arm: str, over: str) -> Gain:
    """Return how much lower the test loss of `arm` is."""
    return Gain(LOSS, arm, over)


def over(arm: str, what: str) -> Claim:
    """Return DWM's gain over a baseline."""
    return Claim(f"over_{arm}", f"Gain in test loss over {what}", gain("dwm", arm))


GATES = (
    Claim(
        "noise_loses_weight",
        "From the third round on, noise has at most half of a uniform weight",
        Ratio(WEIGHT, "uniform", "dwm"),
        EverySeedAbove(2.0),
    ),
    Claim("below_uniform", "Lower test loss than uniform weights", gain("dwm", "uniform"), EverySeedAbove(0.0)),
    Claim(
        "below_random",
        "Lower test loss than random weights with the same effective batch",
        gain("dwm", "random"),
        EverySeedAbove(0.0),
    ),
    Claim(
        "gap_to_oracle",
        "At least a fifth of the way from uniform weights to clean data alone",
        RecoveredShare(LOSS, "dwm", "uniform", best="oracle"),
        EverySeedAbove(20.0),
    ),
    Claim(
        "transfer",
        "Weighting models of the narrow run, frozen: lower test loss than uniform weights at twice the width",
        gain("wide_transfer", "wide"),
        EverySeedAbove(0.0),
        paper="helps larger models, by the abstract; no number was readable",
    ),
    Claim(
        "transfer_to_selection",
        "Weighting models of the raw data's run, frozen, on data that DSIR selected: lower test loss than uniform",
        gain("selected_transfer", "selected"),
        EverySeedAbove(0.0),
        paper="helps selected data, by the abstract; no number was readable",
    ),
    Claim(
        "transfer_overhead",
        "Weighing a batch by a frozen model stays below a tenth of a training step, by (percentage points)",
        Below(OVERHEAD, "wide_transfer", limit=TRANSFER_LIMIT),
        EverySeedAbove(0.0),
    ),
    Claim(
        "preference_moves",
        "The hard domain's weight changes from the first learned round to the last by over 2 standard errors",
        Magnitude(SHIFT, "pair_dwm"),
        EverySeedAbove(2.0),
        paper="preferences move during training",
    ),
    Claim(
        "staged_over_static",
        "With two useful domains, test loss not above that of a model frozen after its first round, in the mean",
        gain("pair_dwm", "pair_static"),
        MeanAbove(0.0),
    ),
    Claim(
        "control_loss",
        "On clean data alone, the test loss is at most 1 % above that of uniform weights",
        RelativeGain(LOSS, "clean_dwm", "oracle"),
        EverySeedAbove(-1.0),
    ),
    Claim(
        "control_batch",
        "On clean data alone, the effective batch stays above 0.7 of the batch",
        Ratio(ESS, "clean_dwm", "oracle"),
        EverySeedAbove(0.7),
    ),
    Claim(
        "smollm2_below_uniform",
        "SmolLM2 trained on: lower loss on held-out prose than with uniform weights",
        gain("smollm2_dwm", "smollm2_uniform"),
        EverySeedAbove(0.0),
    ),
)


REPORTED = (
    over("static", "DWM frozen after its first round"),
    over("per_sample", "DWM that sees each sequence alone"),
    over("loss_high", "weights by loss, high ones preferred"),
    over("loss_low", "weights by loss, low ones preferred"),
    over("perplexity", "keeping the half of lowest perplexity"),
    over("dsir", "n-gram importance (DSIR)"),
    over("influence", "the half of largest predicted influence, chosen anew in each round (as MATES)"),
    over("classifier", "a classifier's half"),
    Claim("pair_over_uniform", "Two useful domains: gain over uniform weights", gain("pair_dwm", "pair_uniform")),
)
"""What is measured and has no gate."""


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a narrow model, 10 steps and two seeds, without SmolLM2."""
    return Method(
        name="dwm",
        title="DWM: weights inside the batch by bi-level optimization",
        source="arXiv:2507.16178",
        setup=SETUP,
        arms=arms(miniature),
        claims=tuple(claim for claim in GATES + REPORTED if not (miniature and "smollm2" in claim.id)),
        metrics=(LOSS, WEIGHT, ESS, OVERHEAD),
        figure=(LOSS, WEIGHT, ESS),
        seeds=2 if miniature else SEEDS,
        quick=QUICK,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms of the tables; in miniature without SmolLM2."""
    text = tuple(row.arm(miniature) for row in ARMS)
    return text if miniature else text + tuple(row.arm() for row in SMOLLM2_ARMS)
