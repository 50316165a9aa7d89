"""SlimLLM's claims on SmolLM2-135M: its parts, and the baselines at 20 and 50 % (arXiv:2505.22689)."""

from __future__ import annotations

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Metric, Ratio, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove
from benchmarks.methods.pruning.task import REMOVED, START, TEXT, group_arms
from benchmarks.methods.slimllm.task import prune
from benchmarks.methods.slimllm.variants import BASELINES, FFN, FIFTY_PERCENT, HEADS, STEPS, TWENTY_PERCENT

AFTER = Metric(f"after_{STEPS}", f"perplexity after {STEPS} steps", digits=2, higher_is_better=False, log_axis=True)
SEEDS = 3
QUICK = "heads_pearson"  # the smallest group: heads alone, without recovery

SETUP = (
    f"{TEXT} 20 % and 50 % are shares of the FFN and attention parameters. With 3 KV groups a layer heads are coarse: "
    "what they remove too much is given back to the FFN of the same layer. "
    f"{STEPS} steps of recovery: SlimLLM and random on all three calibration sets, the other arms on the first."
)


def below(id_: str, statement: str, arm: str, over: str, margin: float) -> Claim:
    """Return the claim that an arm's perplexity is at least `margin` percent below another's on every set."""
    return Claim(id_, statement, RelativeGain(START, arm, over), EverySeedAbove(margin))


def recovery(percent: int) -> Claim:
    """Return the claim that the start that SlimLLM gives is worth having after recovery."""
    return Claim(
        f"recovery_{percent}",
        f"At {percent} %, after the same {STEPS} steps of recovery, below the random start",
        RelativeGain(AFTER, f"slimllm_{percent}", f"random_{percent}"),
        EverySeedAbove(0),
    )


GATES = (
    below(
        "heads_over_activation",
        "Heads by Pearson, greedy exchange and regression: at least 8 % below activation norm and regression",
        "heads_pearson",
        "heads_activation",
        8,
    ),
    below(
        "heads_over_random",
        "Heads by Pearson, greedy exchange and regression: at least 15 % below random heads and regression",
        "heads_pearson",
        "heads_random",
        15,
    ),
    below(
        "regression",
        "At 20 % the regression lowers SlimLLM's perplexity by at least 10 %",
        "slimllm_20",
        "no_regression_20",
        10,
    ),
    below(
        "regression_ffn",
        "At 40 % of the FFN the regression lowers the perplexity by at least 6 %",
        "ffn40_slimllm",
        "ffn40_unrepaired",
        6,
    ),
    Claim(
        "score_over_magnitude",
        "FFN channels by SlimLLM's score: weight magnitude has at least 10 times the perplexity at 20 %",
        Ratio(START, "ffn_magnitude", "ffn_slimllm"),
        EverySeedAbove(10),
    ),
    below(
        "score_over_random",
        "FFN channels by SlimLLM's score: at least 50 % below random channels at 20 %",
        "ffn_slimllm",
        "ffn_random",
        50,
    ),
    below(
        "layer_rule",
        "Sparing the layers that change their input most: at least 1.5 % below one share for all layers",
        "ffn_skip",
        "ffn_slimllm",
        1.5,
    ),
    recovery(20),
    recovery(50),
)
"""Margins hold on every calibration set."""


PAPER = {
    "wanda_sp_20": "-1.7 % (LLaMA-7B, 15.95 against LoRAP's 15.69)",
    "wanda_sp_50": "33 % (LLaMA-7B, 37.89 against LoRAP's 56.96)",
    "llm_pruner_20": "16 % (LLaMA-7B, 15.95 against 19.09)",
    "llm_pruner_50": "66 % (LLaMA-7B, 37.89 against 112.44)",
}
"""Baseline -> what the paper reports of the gain over it."""


def gain(arm: str, over: str, statement: str, metric: Metric = START) -> Claim:
    """Return what is reported of two arms' perplexities, in percent."""
    after, paper = ("_after", "") if metric is AFTER else ("", PAPER.get(over, ""))
    return Claim(f"{arm}_over_{over}{after}", statement, RelativeGain(metric, arm, over), paper=paper)


def table(percent: int) -> tuple[Claim, ...]:
    """Return SlimLLM's gains at one share: by its parts, and over each baseline before and after recovery."""
    ours = f"slimllm_{percent}"
    rows = [
        gain(ours, f"no_greedy_{percent}", f"{percent} %: gain by the greedy exchange"),
        gain(ours, f"no_layer_share_{percent}", f"{percent} %: gain by the layers' own shares"),
    ]
    for name, title in {**BASELINES, "shortgpt": "whole layers by block influence (ShortGPT)"}.items():
        rows.append(gain(ours, f"{name}_{percent}", f"{percent} %: SlimLLM below {title}"))
        rows.append(gain(ours, f"{name}_{percent}", f"{percent} %: the same after {STEPS} steps of recovery", AFTER))
    return tuple(rows)


REPORTED = (
    gain("ffn_slimllm", "ffn_wanda", "FFN 20 %: SlimLLM's score below Wanda-style (expected: parity within 4 %)"),
    gain("ffn40_slimllm", "ffn40_wanda", "FFN 40 %: SlimLLM's score below Wanda-style (expected: parity)"),
    gain("ffn_slimllm", "ffn_no_pca", "FFN 20 %: gain by PCA weighting"),
    gain("ffn_slimllm", "ffn_keep0", "FFN 20 %: gain by keeping the lowest 1 %"),
    gain("ffn_skip", "ffn_skip_alpha0", "FFN 20 %: gain by alpha 10 over alpha 0"),
    gain("heads_pearson", "heads_no_greedy", "Heads: gain by the greedy exchange"),
    gain(
        "heads_pearson_unrepaired",
        "heads_activation_unrepaired",
        "Heads without regression: Pearson below activation norm (expected: far above, it is blind to scale)",
    ),
    *table(20),
    *table(50),
)
"""Without a gate: parity, and the table's differences."""


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature eight layers, four calibration windows and one step of recovery."""
    return Method(
        name="slimllm",
        title="SlimLLM: heads and channels pruned in closed form",
        source="arXiv:2505.22689",
        setup=SETUP,
        arms=arms(miniature),
        claims=GATES + REPORTED,
        metrics=(START, AFTER, REMOVED),
        figure=(START,),
        seeds=SEEDS,
        quick=QUICK,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms, group by group."""
    groups = (TWENTY_PERCENT, FIFTY_PERCENT, FFN, HEADS)
    return tuple(arm for group in groups for arm in group_arms(group, prune, miniature=miniature))
