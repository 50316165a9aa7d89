"""DWM's claims on mixed text: weights learned by bi-level optimization against other weights (arXiv:2507.16178)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Below, Gain, Magnitude, Metric, Ratio, RecoveredShare, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove, MeanAbove
from benchmarks.methods.dwm.task import WeighedRun, weighed_arm

TEXT, SMOLLM2 = "recipes.dwm_text", "recipes.dwm_smollm2"
STEPS, WIDE_STEPS, STAGES = 800, 400, 10
WIDE = {"hidden_size": 256, "intermediate_size": 704}
SEEDS, REPORTED_SEEDS = 3, 1
NOISE = ("shuffled", "random")
DOMAINS = ("prose", *NOISE)
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
    f"{STAGES - 1} of {STAGES} stages on the target, from the profile of each sequence's token losses; the offline "
    "baselines see the same target and keep half of the data. In the two-domain arms target and test are half "
    "prose, half sentences of one form with random numbers; the arms on a selection train on the three quarters of the "
    "windows that DSIR draws; the wide arms have twice the width and take "
    f"{WIDE_STEPS} steps. SmolLM2-135M goes on training for 60 steps of 8 x 128 tokens, learning rate 1e-4, on prose "
    "(the reference texts of Python's help system), that prose with its words shuffled, and in an invented language "
    "(letters exchanged by a fixed cipher), 2:1:1."
)


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a narrow model, 10 steps and two seeds, without SmolLM2."""
    return Method(
        name="dwm",
        title="DWM: weights inside the batch by bi-level optimization",
        source="arXiv:2507.16178",
        setup=SETUP,
        arms=arms(miniature),
        claims=tuple(claim for claim in gates() + reported() if not (miniature and "smollm2" in claim.id)),
        metrics=(LOSS, WEIGHT, ESS, OVERHEAD),
        figure=(LOSS, WEIGHT, ESS),
        seeds=2 if miniature else SEEDS,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the gated arms, then those that are only reported."""

    def run(
        method: str | None = None,
        fields: Mapping[str, Any] | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        wide: bool = False,
        **options: Any,
    ) -> WeighedRun:
        """Return a run of the text recipe: DWM with `fields`, or the baseline `method` with them."""
        changes = text_changes(data or {}, wide, miniature)
        if method is not None:
            return WeighedRun(TEXT, changes, {"method": method, "n_stages": STAGES, **(fields or {})}, **options)
        changes["callbacks"]["dwm"] |= fields or {}
        return WeighedRun(TEXT, changes, **options)

    def only_reported(name: str, description: str, run: WeighedRun) -> Arm:
        return weighed_arm(name, description, run, seeds=REPORTED_SEEDS)

    static = {"freeze_after_stage": 1}
    clean = {"domains": domains(prose=1.0)}
    both = ("hard", "easy")
    pair = {"domains": pair_of_domains(), "target": both, "test": both}
    gated = (
        weighed_arm("uniform", "uniform weights", run("uniform", noise=NOISE)),
        weighed_arm("dwm", "DWM", run(noise=NOISE)),
        weighed_arm("random", "random, DWM's effective batch", run("random", noise=NOISE, ess_from="dwm")),
        weighed_arm("oracle", "clean data alone, uniform", run("uniform", data=clean)),
        weighed_arm("clean_dwm", "clean data alone, DWM", run(data=clean)),
        weighed_arm("wide", "twice the width, uniform", run("uniform", wide=True, noise=NOISE)),
        weighed_arm(
            "wide_transfer",
            "twice the width, DWM's weighting models",
            run(wide=True, noise=NOISE, frozen_from="dwm", time_overhead=True),
        ),
        weighed_arm("selected", "DSIR's selection, uniform", run("uniform", selection=SELECTION, noise=NOISE)),
        weighed_arm(
            "selected_transfer",
            "DSIR's selection, DWM's weighting models",
            run(selection=SELECTION, noise=NOISE, frozen_from="dwm"),
        ),
        weighed_arm("pair_uniform", "two useful domains, uniform", run("uniform", data=pair)),
        weighed_arm("pair_dwm", "two useful domains, DWM", run(data=pair, followed="hard")),
        weighed_arm("pair_static", "two useful domains, DWM after its first stage", run(None, static, data=pair)),
    )
    others = (
        only_reported("static", "DWM frozen after its first stage", run(None, static, noise=NOISE)),
        only_reported("per_sample", "DWM, each sequence alone", run(None, {"model": {"n_mix": 0}}, noise=NOISE)),
        *(
            only_reported(
                f"loss_{prefer}", f"by loss, {prefer} preferred", run("loss", {"prefer": prefer}, noise=NOISE)
            )
            for prefer in ("high", "low")
        ),
        only_reported("perplexity", "half of lowest perplexity under bigrams", run("perplexity", noise=NOISE)),
        only_reported("dsir", "half drawn by n-gram importance (DSIR)", run("dsir", noise=NOISE)),
        only_reported(
            "influence",
            "half of largest predicted influence, chosen in each stage (as MATES)",
            WeighedRun(TEXT, text_changes({}, False, miniature), influence={"n_stages": STAGES}, noise=NOISE),
        ),
        only_reported("classifier", "half a classifier takes for the target", run("classifier", noise=NOISE)),
    )
    return gated + others + (() if miniature else smollm2_arms())


def smollm2_arms() -> tuple[Arm, ...]:
    """Return SmolLM2 with uniform weights and with DWM."""
    trainer = {"limit_val_batches": 0, "enable_checkpointing": False}
    uniform, dwm = (
        WeighedRun(SMOLLM2, {"trainer": trainer}, weighting, noise=("shuffled", "cipher"))
        for weighting in ({"method": "uniform", "n_stages": 6}, None)
    )
    return (
        weighed_arm("smollm2_uniform", "SmolLM2, uniform weights", uniform),
        weighed_arm("smollm2_dwm", "SmolLM2, DWM", dwm),
    )


def text_changes(data: Mapping[str, Any], wide: bool, miniature: bool) -> dict[str, Any]:
    """Return the overrides of a text arm: its data, its width, and nothing that only costs time."""
    from recipes.dwm_text import LLAMA

    steps, sizes = (WIDE_STEPS, WIDE) if wide else (STEPS, {})
    small: dict[str, Any] = {}
    if miniature:
        steps, sizes = 10, {"hidden_size": 32 if wide else 16, "intermediate_size": 32}
        data, small = {**data, "size": 400}, {"dwm_steps": 2}
    return {
        "module": {"model_args": {**LLAMA, **sizes}},
        "data": dict(data),
        "callbacks": {"dwm": small},
        "trainer": {
            "max_steps": steps,
            "val_check_interval": max(1, steps // STAGES),
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
        },
    }


def domains(**shares: float) -> dict[str, Any]:
    """Return the recipe's domains with these shares, 0 for the others."""
    from recipes.dwm_text import DOMAINS

    return {name: domain.derive(share=shares.get(name, 0.0)) for name, domain in DOMAINS.items()}


def pair_of_domains() -> dict[str, Any]:
    """Return a hard and an easy domain in equal shares."""
    from datamodules import Domain
    from recipes.dwm_text import KJV

    return {"hard": Domain(source=KJV), "easy": Domain(source=KJV, corruption="records")}


def gates() -> tuple[Claim, ...]:
    """Return the claims that get a verdict."""
    return (
        Claim(
            "noise_loses_weight",
            "From the third stage on, noise has at most half of a uniform weight",
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
            "The hard domain's weight changes from the first learned stage to the last by over 2 standard errors",
            Magnitude(SHIFT, "pair_dwm"),
            EverySeedAbove(2.0),
            paper="preferences move during training",
        ),
        Claim(
            "staged_over_static",
            "With two useful domains, test loss not above that of a model frozen after its first stage, in the mean",
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


def reported() -> tuple[Claim, ...]:
    """Return what is measured and has no gate."""
    others = {
        "static": "DWM frozen after its first stage",
        "per_sample": "DWM that sees each sequence alone",
        "loss_high": "weights by loss, high ones preferred",
        "loss_low": "weights by loss, low ones preferred",
        "perplexity": "keeping the half of lowest perplexity",
        "dsir": "n-gram importance (DSIR)",
        "influence": "the half of largest predicted influence, chosen anew in each stage (as MATES)",
        "classifier": "a classifier's half",
    }
    return (
        *(Claim(f"over_{arm}", f"Gain in test loss over {what}", gain("dwm", arm)) for arm, what in others.items()),
        Claim("pair_over_uniform", "Two useful domains: gain over uniform weights", gain("pair_dwm", "pair_uniform")),
    )


def gain(arm: str, over: str) -> Gain:
    """Return how much lower the test loss of `arm` is."""
    return Gain(LOSS, arm, over)
