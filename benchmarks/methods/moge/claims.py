"""MoGE's claims: grouped routing against top-K routing, untrained and trained on text (arXiv:2505.21411)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Below, Gain, Metric, Ratio, Value
from benchmarks.harness.recipe_arm import RecipeRun, recipe_arm
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MeanAbove
from benchmarks.methods.moge.task import ExpertTime, RoundTrip, Speculate, UniformRouters

TEXT, UPCYCLED, DRAFTER = "recipes.moge_text", "recipes.moge_upcycle_smollm2", "recipes.drafter_smollm2"
STEPS = 1500
ALPHA = 0.01
SEEDS, REPORTED_SEEDS = 3, 1
TRIALS = {1: 4000, 16: 2000, 128: 1000, 1024: 300}
SMALL_LLAMA = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}

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


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a narrow model, 10 steps and two seeds, without SmolLM2."""
    claims = gates() + reported()
    return Method(
        name="moge",
        title="MoGE: the same number of experts from every group",
        source="arXiv:2505.21411",
        setup=SETUP,
        arms=arms(miniature),
        claims=tuple(claim for claim in claims if not (miniature and "smollm2" in claim.id)),
        metrics=(LOSS, CV, SMALL_IMBALANCE, IMBALANCE, SLOWEST, PERPLEXITY, ACCEPTANCE, SPEEDUP),
        figure=(LOSS, CV, IMBALANCE),
        seeds=2 if miniature else SEEDS,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the gated arms, then those that are only reported."""

    def text(alpha: float, **model_args: Any) -> RecipeRun:
        return RecipeRun(TEXT, changes=text_changes(miniature, alpha, model_args))

    trials = {1: 200, 16: 50, 128: 10, 1024: 3} if miniature else TRIALS
    timed = ExpertTime(tokens=128, hidden_size=64, intermediate_size=64) if miniature else ExpertTime()
    deepseek = {"router": "deepseek", "kept_groups": 4, "norm_topk_prob": True}
    gated = (
        Arm("untrained", "random scores", UniformRouters(trials), {"trials": [*map(list, trials.items())]}),
        Arm("checkpoint", "released layout, loaded and saved", RoundTrip(), {"layers": 2}),
        recipe_arm("topk", "top-K with auxiliary loss", text(ALPHA, router="topk")),
        recipe_arm("moge", "MoGE with auxiliary loss", text(ALPHA)),
        recipe_arm("moge_free", "MoGE without auxiliary loss", text(0.0)),
        Arm(
            "expert_time",
            "each device's experts timed alone",
            timed,
            {
                name: getattr(timed, name)
                for name in ("devices", "tokens", "hidden_size", "intermediate_size", "repeats")
            },
            needs=("topk", "moge"),
        ),
    )
    others = (
        recipe_arm("topk_free", "top-K without auxiliary loss", text(0.0, router="topk"), REPORTED_SEEDS),
        recipe_arm("deepseek", "sigmoid, 4 of 8 groups, bias", text(0.0, **deepseek), REPORTED_SEEDS),
        recipe_arm(
            "drafter", "Llama of 1 layer and width 64", RecipeRun(TEXT, changes=drafter(miniature)), REPORTED_SEEDS
        ),
        speculation(
            "speculation", "MoGE with that drafter", Speculate("drafter", "moge", prompts=2 if miniature else 8)
        ),
    )
    return gated + others + (() if miniature else smollm2_arms())


def smollm2_arms() -> tuple[Arm, ...]:
    """Return SmolLM2 upcycled with both routers, and a drafter made of it."""
    trainer = {"enable_checkpointing": False}

    def upcycled(router: str) -> RecipeRun:
        plan = {"kind": "upcycle", "upcycle": {"router": router}}
        return RecipeRun(UPCYCLED, changes={"module": {"structure": [plan]}, "trainer": trainer})

    drafting = RecipeRun(DRAFTER, changes={"trainer": trainer, "callbacks": {"prune": {"progress_folder": None}}})
    return (
        recipe_arm("smollm2_moge", "SmolLM2 upcycled, MoGE", upcycled("moge"), REPORTED_SEEDS),
        recipe_arm("smollm2_topk", "SmolLM2 upcycled, top-K", upcycled("topk"), REPORTED_SEEDS),
        recipe_arm("smollm2_drafter", "8 of SmolLM2's layers, distilled", drafting, REPORTED_SEEDS),
        speculation("smollm2_speculation", "SmolLM2 with that drafter", Speculate("smollm2_drafter")),
    )


def speculation(name: str, description: str, run: Speculate) -> Arm:
    """Return the arm that decodes speculatively."""
    config = {key: getattr(run, key) for key in ("prompts", "prompt_tokens", "new_tokens", "drafted")}
    needs = tuple(arm for arm in (run.drafter, run.target) if arm)
    return Arm(name, description, run, config, needs, REPORTED_SEEDS)


def text_changes(miniature: bool, alpha: float, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of a text arm: its router, its auxiliary loss, and nothing that only costs time."""
    from recipes.moge_text import MOGE

    small = {"hidden_size": 32, "moe_intermediate_size": 16} if miniature else {}
    return {
        "module": {"model_args": {**MOGE, **small, **model_args}},
        "callbacks": {"balance": {"coefficient": alpha}},
        "trainer": quick_trainer(miniature),
    }


def drafter(miniature: bool) -> dict[str, Any]:
    """Return the overrides that make the text recipe train a small Llama."""
    return {
        "module": {"architecture": "llama", "model_args": SMALL_LLAMA},
        "callbacks": {"balance": None, "load": None},
        "trainer": quick_trainer(miniature),
    }


def quick_trainer(miniature: bool) -> dict[str, Any]:
    """Return the trainer's overrides: no validation and no checkpoint but the last."""
    limits = {"limit_test_batches": 2} if miniature else {}
    trainer = {"max_steps": 10 if miniature else STEPS, "val_check_interval": None, "limit_val_batches": 0}
    return {**trainer, "enable_checkpointing": False, **limits}


def gates() -> tuple[Claim, ...]:
    """Return the claims that get a verdict."""
    return (
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


def reported() -> tuple[Claim, ...]:
    """Return what is measured and has no gate."""

    def itself(metric: Metric, arm: str, statement: str, paper: str = "") -> Claim:
        return Claim(f"{arm}_{metric.key}", statement, Value(metric, arm), paper=paper)

    return (
        itself(TIME_RATIO, "expert_time", "Expert time of the slowest of 4 devices at 2048 tokens, top-K over MoGE"),
        Claim("loss_over_topk_free", "MoGE's gain in test loss over top-K without it", Gain(LOSS, "moge", "topk_free")),
        Claim(
            "loss_over_deepseek", "MoGE's gain in test loss over the deepseek router", Gain(LOSS, "moge", "deepseek")
        ),
        Claim("loss_over_moge_free", "Gain in test loss by the auxiliary loss", Gain(LOSS, "moge", "moge_free")),
        itself(ACCEPTANCE, "speculation", "Tokens of the small Llama that the trained MoGE accepts"),
        itself(PER_PASS, "speculation", "Tokens that MoGE writes in a pass with it"),
        itself(SPEEDUP, "speculation", "Speed-up by it, CPU time", paper="1148 to 1528 tokens/s (Ascend 800I A2)"),
        Claim(
            "smollm2_upcycled",
            "SmolLM2 upcycled: perplexity of MoGE over that of top-K",
            Ratio(PERPLEXITY, "smollm2_moge", "smollm2_topk"),
        ),
        itself(ACCEPTANCE, "smollm2_speculation", "Tokens of the pruned SmolLM2 that SmolLM2 accepts"),
        itself(PER_PASS, "smollm2_speculation", "Tokens that SmolLM2 writes in a pass with it"),
        itself(SPEEDUP, "smollm2_speculation", "Speed-up by it, CPU time"),
    )
