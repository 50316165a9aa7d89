"""MoGE's claims: grouped routing against top-K routing, untrained and trained on text (arXiv:2505.21411)."""

from __future__ import annotations

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Below, Gain, Metric, Ratio, Value
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MeanAbove
from benchmarks.methods.moge.rows import (
    ALPHA,
    FEW_TRIALS,
    REPORTED_SEEDS,
    STEPS,
    TRIALS,
    Measurement,
    Mixture,
    SmallLlama,
    checkpoint,
    expert_time,
    smollm2_drafter,
    smollm2_upcycled,
    speculation,
    untrained,
)
from benchmarks.methods.moge.task import ExpertTime, Speculate

SEEDS = 3

LOSS = Metric("test/loss", "test loss", "nats", higher_is_better=False)
CV = Metric("test/load/cv", "load of experts, std / mean", higher_is_better=False)
IMBALANCE = Metric("test/load/imbalance_128", "imbalance score at 128 tokens", digits=2, higher_is_better=False)
SMALL_IMBALANCE = Metric("test/load/imbalance_16", "imbalance score at 16 tokens", higher_is_better=False)
SLOWEST = Metric("test/load/device_max_over_mean_128", "slowest device / mean at 128 tokens", digits=2)
DEVIATION = Metric("deviation", "largest distance from the known values", "standard errors", higher_is_better=False)
UNTRAINED = Metric("moge_imbalance", "largest imbalance score of MoGE, untrained", higher_is_better=False)
DISAGREEMENT = Metric("disagreement", "ratio of times off the ratio of rows", "%", scale=100, higher_is_better=False)
ROW_SPREAD = Metric("moge_row_spread", "most less least rows of a device, MoGE", "rows", higher_is_better=False)
TIME_RATIO = Metric("time_ratio", "expert time, top-K / MoGE", "times", digits=2)
ERROR = Metric("logit_error", "largest difference of logits", "1e-5", scale=1e5, higher_is_better=False)
CHANGED = Metric("changed_tensors", "tensors changed by load and save", scale=1, digits=0, higher_is_better=False)
PERPLEXITY = Metric("test/perplexity", "test perplexity", digits=1, higher_is_better=False, log_axis=True)
ACCEPTANCE = Metric("acceptance_rate", "drafted tokens accepted", "%", scale=100, digits=0)
PER_PASS = Metric("tokens_per_pass", "tokens in a pass of the model", digits=2)
SPEEDUP = Metric("speedup", "CPU time without / with the drafter", "times", digits=2)

SETUP = (
    "A Pangu Pro MoE of 3 layers and width 128 from scratch: 32 experts of width 48 in 8 groups, 8 for each token, a "
    f"shared expert of width 128. {STEPS} steps of AdamW, learning rate 2e-3 with a cosine, on 8 x 128 tokens of the "
    "King James Bible (byte-level BPE with 1024 tokens; chunks of 16 windows are held out at random, the same for all"
    " seeds). All routers have the same experts, seeds and order of data; 8 devices with 4 consecutive experts each. "
    f"The auxiliary loss has weight {ALPHA}. Load is that of the whole test set. Untrained routers choose 8 of 64 by "
    "random scores. The upcycled SmolLM2-135M keeps half of each FFN as its shared expert, makes 32 experts of the "
    "rest, 16 for each token, and is trained for 40 steps of 4 x 128 tokens. Speculative decoding is greedy, 64 "
    "tokens after each of 8 test prompts, one thread."
)

ARMS = (
    Measurement(untrained(TRIALS), untrained(FEW_TRIALS)),
    Measurement(checkpoint()),
    Mixture("topk", "top-K with auxiliary loss", {"router": "topk"}),
    Mixture("moge", "MoGE with auxiliary loss"),
    Mixture("moge_free", "MoGE without auxiliary loss", alpha=0.0),
    Measurement(expert_time(ExpertTime()), expert_time(ExpertTime(tokens=128, hidden_size=64, intermediate_size=64))),
    # Only reported.
    Mixture("topk_free", "top-K without auxiliary loss", {"router": "topk"}, alpha=0.0, seeds=REPORTED_SEEDS),
    Mixture(
        "deepseek",
        "sigmoid, 4 of 8 groups, bias",
        {"router": "deepseek", "kept_groups": 4, "norm_topk_prob": True},
        alpha=0.0,
        seeds=REPORTED_SEEDS,
    ),
    SmallLlama("drafter", "Llama of 1 layer and width 64"),
    Measurement(
        speculation("speculation", "MoGE with that drafter", Speculate("drafter", "moge")),
        speculation("speculation", "MoGE with that drafter", Speculate("drafter", "moge", prompts=2)),
    ),
)
SMOLLM2_ARMS = (
    smollm2_upcycled("smollm2_moge", "SmolLM2 upcycled, MoGE", "moge"),
    smollm2_upcycled("smollm2_topk", "SmolLM2 upcycled, top-K", "topk"),
    smollm2_drafter("smollm2_drafter", "8 of SmolLM2's layers, distilled"),
    speculation("smollm2_speculation", "SmolLM2 with that drafter", Speculate("smollm2_drafter")),
)
QUICK = "untrained"  # seconds; the trained routers take five minutes each

GATES = (
    Claim(
        "uniform_topk",
        "Untrained top-K routers are as unbalanced as derived: all known means within 3 standard errors",
        Below(DEVIATION, "untrained", limit=3.0),
        EverySeedAbove(0.0),
        paper="imbalance is nearly certain for 64 experts, 8 of them on 8 devices",
    ),
    Claim(
        "untrained_balance",
        "Untrained MoGE routers have an imbalance score of 0 in all batches, on 2, 4 and 8 devices",
        Value(UNTRAINED, "untrained"),
        AlwaysEqual(0.0),
        paper="0 by construction",
    ),
    Claim(
        "trained_balance",
        "Trained MoGE has an imbalance score of 0 in all batches of 16 tokens of the test set",
        Value(SMALL_IMBALANCE, "moge"),
        AlwaysEqual(0.0),
        paper="0 by construction",
    ),
    Claim(
        "trained_topk",
        "Trained top-K with auxiliary loss has an imbalance score above 0.3 at 128 tokens",
        Value(IMBALANCE, "topk"),
        EverySeedAbove(0.3),
    ),
    Claim(
        "quality",
        "Test loss at most 0.03 nats above that of top-K with auxiliary loss, in the mean",
        Gain(LOSS, "moge", "topk"),
        MeanAbove(-0.03),
    ),
    Claim(
        "slowest_device",
        "At 128 tokens the busiest of 8 devices has at least 1.2 times as many rows with top-K",
        Ratio(SLOWEST, "topk", "moge"),
        EverySeedAbove(1.2),
    ),
    Claim(
        "auxiliary_loss",
        "The auxiliary loss makes MoGE's experts more evenly loaded inside their groups",
        Gain(CV, "moge", "moge_free"),
        EverySeedAbove(0.0),
    ),
    Claim(
        "rows_of_devices",
        "Every one of 4 devices receives exactly the same number of rows from trained MoGE",
        Value(ROW_SPREAD, "expert_time"),
        AlwaysEqual(0.0),
    ),
    Claim(
        "expert_time",
        "Expert time of the slowest device, top-K over MoGE: the ratio is within 10 % of that of its rows",
        Below(DISAGREEMENT, "expert_time", limit=0.1),
        EverySeedAbove(0.0),
    ),
    Claim(
        "checkpoint_logits",
        "A checkpoint in the released layout gives the logits of a loop over experts, within 1e-5",
        Below(ERROR, "checkpoint", limit=1e-5),
        EverySeedAbove(0.0),
    ),
    Claim(
        "checkpoint_bytes",
        "Loaded and saved again, no tensor of it has changed",
        Value(CHANGED, "checkpoint"),
        AlwaysEqual(0),
    ),
)


def value(metric: Metric, arm: str, statement: str, paper: str = "") -> Claim:
    """Return what is reported of one arm's number."""
    return Claim(f"{arm}_{metric.key}", statement, Value(metric, arm), paper=paper)


REPORTED = (
    value(TIME_RATIO, "expert_time", "Expert time of the slowest of 4 devices at 2048 tokens, top-K over MoGE"),
    Claim("loss_over_topk_free", "MoGE's gain in test loss over top-K without it", Gain(LOSS, "moge", "topk_free")),
    Claim("loss_over_deepseek", "MoGE's gain in test loss over the deepseek router", Gain(LOSS, "moge", "deepseek")),
    Claim("loss_over_moge_free", "Gain in test loss by the auxiliary loss", Gain(LOSS, "moge", "moge_free")),
    value(ACCEPTANCE, "speculation", "Tokens of the small Llama that the trained MoGE accepts"),
    value(PER_PASS, "speculation", "Tokens that MoGE writes in a pass with it"),
    value(SPEEDUP, "speculation", "Speed-up by it, CPU time", paper="1148 to 1528 tokens/s (Ascend 800I A2)"),
    Claim(
        "smollm2_upcycled",
        "SmolLM2 upcycled: perplexity of MoGE over that of top-K",
        Ratio(PERPLEXITY, "smollm2_moge", "smollm2_topk"),
    ),
    value(ACCEPTANCE, "smollm2_speculation", "Tokens of the pruned SmolLM2 that SmolLM2 accepts"),
    value(PER_PASS, "smollm2_speculation", "Tokens that SmolLM2 writes in a pass with it"),
    value(SPEEDUP, "smollm2_speculation", "Speed-up by it, CPU time"),
)
"""What is measured and has no gate."""


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a narrow model, 10 steps and two seeds, without SmolLM2."""
    return Method(
        name="moge",
        title="MoGE: the same number of experts from every group",
        source="arXiv:2505.21411",
        setup=SETUP,
        arms=arms(miniature),
        claims=tuple(claim for claim in GATES + REPORTED if not (miniature and "smollm2" in claim.id)),
        metrics=(LOSS, CV, SMALL_IMBALANCE, IMBALANCE, SLOWEST, PERPLEXITY, ACCEPTANCE, SPEEDUP),
        figure=(LOSS, CV, IMBALANCE),
        seeds=2 if miniature else SEEDS,
        quick=QUICK,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms of the tables; in miniature without SmolLM2."""
    text = tuple(row.arm(miniature) for row in ARMS)
    return text if miniature else text + SMOLLM2_ARMS
