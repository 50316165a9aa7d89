"""SlimLLM's claims on SmolLM2-135M: its parts, and the baselines at 20 and 50 % (arXiv:2505.22689)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Metric, Ratio, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove
from benchmarks.methods.pruning.task import REMOVED, START, TEXT, Texts, Variant, group_arms

if TYPE_CHECKING:
    from torch import nn

STEPS = 8
AFTER = Metric(f"after_{STEPS}", f"perplexity after {STEPS} steps", digits=2, higher_is_better=False, log_axis=True)
SEEDS = 3

# Ratios are of heads and FFN channels, i.e. of FFN and attention parameters together (79 % of the model).
PUBLISHED: dict[int, dict[str, Any]] = {  # mean ratio over the pruned layers, their share of all layers, alpha
    20: {"base_ratio": 0.25, "share_of_layers": 0.8, "alpha": 10.0},
    50: {"base_ratio": 0.5 * 30 / 28, "share_of_layers": 28 / 30, "alpha": 7.0},
}
BASELINES = {
    "random": "random heads and channels",
    "magnitude": "weight magnitude",
    "minitron": "mean activation (Minitron)",
    "wanda_sp": "activation norm times weight norm (Wanda, structured)",
    "flap": "fluctuation, mean folded into a bias (FLAP)",
    "llm_pruner": "first-order Taylor (LLM-Pruner)",
}

SETUP = (
    f"{TEXT} 20 % and 50 % are shares of the FFN and attention parameters. With 3 KV groups a layer heads are coarse: "
    "what they remove too much is given back to the FFN of the same layer. "
    f"{STEPS} steps of recovery: SlimLLM and random on all three calibration sets, the other arms on the first."
)


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature eight layers, four calibration windows and one step of recovery."""
    return Method(
        name="slimllm",
        title="SlimLLM: heads and channels pruned in closed form",
        source="arXiv:2505.22689",
        setup=SETUP,
        arms=arms(miniature),
        claims=gates() + reported(),
        metrics=(START, AFTER, REMOVED),
        figure=(START,),
        seeds=SEEDS,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms, group by group."""
    groups = (table(20), table(50), ffn_variants(), head_variants())
    return tuple(arm for group in groups for arm in group_arms(group, prune, miniature=miniature))


def table(percent: int) -> list[Variant]:
    """Return SlimLLM, SlimLLM without each of its parts, and the baselines, at one ratio."""
    whole = PUBLISHED[percent]
    uniform: dict[str, Any] = {"base_ratio": percent / 100, "share_of_layers": 1.0, "alpha": 0.0}

    def variant(name: str, description: str, trained_seeds: int | None = 1, **config: Any) -> Variant:
        return Variant(
            f"{name}_{percent}", f"{percent} %: {description}", config, steps=(STEPS,), trained_seeds=trained_seeds
        )

    parts = [
        variant("slimllm", "SlimLLM", None, **whole),
        variant("no_greedy", "SlimLLM without the greedy exchange", **whole, greedy=False),
        variant("no_regression", "SlimLLM without the regression", **whole, recovery="none"),
        variant("no_layer_ratio", "SlimLLM with one ratio for all layers", **uniform),
    ]
    baselines = [
        variant(name, description, None if name == "random" else 1, **uniform, baseline=name)
        for name, description in BASELINES.items()
    ]
    return [*parts, *baselines, variant("shortgpt", "whole layers by block influence", dropped_layers=percent / 100)]


def ffn_variants() -> list[Variant]:
    """Return the channel criteria, the repair and the layer rule, on the FFN alone."""
    alone = {"head_unit": "none", "share_of_layers": 1.0, "alpha": 0.0}

    def variant(name: str, description: str, percent: int = 20, *, seeds: int | None = 1, **config: Any) -> Variant:
        settings = {**alone, "base_ratio": percent / 100, **config}
        return Variant(name, f"FFN {percent} %: {description}", settings, seeds=seeds)

    skip: dict[str, Any] = {"base_ratio": 0.25, "share_of_layers": 0.8}
    return [
        variant("ffn_slimllm", "SlimLLM's score, repaired", seeds=None),
        variant("ffn_random", "random, repaired", ffn_criterion="random", seeds=None),
        variant("ffn_magnitude", "weight magnitude, repaired", ffn_criterion="magnitude", seeds=None),
        variant("ffn_wanda", "Wanda-style, repaired", ffn_criterion="wanda_down", seeds=None),
        variant("ffn_skip", "24 layers by similarity, alpha 10", seeds=None, **skip, alpha=10.0),
        variant("ffn_skip_alpha0", "24 layers by similarity, alpha 0", **skip),
        variant("ffn_no_pca", "without PCA weighting", pca_weighting=False),
        variant("ffn_keep0", "without the kept 1 %", keep_least_fraction=0.0),
        variant("ffn40_slimllm", "SlimLLM's score, repaired", 40, seeds=None),
        variant("ffn40_unrepaired", "SlimLLM's score, not repaired", 40, recovery="none", seeds=None),
        variant("ffn40_wanda", "Wanda-style, repaired", 40, ffn_criterion="wanda_down"),
    ]


def head_variants() -> list[Variant]:
    """Return the head criteria: one of three KV groups removed in every layer."""
    alone = {"ffn_unit": "none", "share_of_layers": 1.0, "alpha": 0.0, "base_ratio": 1 / 3}

    def variant(name: str, description: str, *, seeds: int | None = 1, **config: Any) -> Variant:
        return Variant(name, f"one KV group of three: {description}", {**alone, **config}, seeds=seeds)

    activation: dict[str, Any] = {"head_criterion": "activation"}
    return [
        variant("heads_pearson", "Pearson and greedy exchange, repaired", seeds=None),
        variant("heads_activation", "activation norm, repaired", **activation, seeds=None),
        variant("heads_random", "random, repaired", head_criterion="random", seeds=None),
        variant("heads_no_greedy", "Pearson alone, repaired", greedy=False),
        variant("heads_pearson_unrepaired", "Pearson and greedy exchange, not repaired", recovery="none"),
        variant("heads_activation_unrepaired", "activation norm, not repaired", **activation, recovery="none"),
    ]


def prune(model: nn.Module, config: Mapping[str, Any], texts: Texts, seed: int) -> None:
    """Prune a model as a variant's config says."""
    from pangu_modules.llm.pruning import surgery
    from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig
    from pangu_modules.llm.pruning.slimllm.config import BASELINES as CHANGES
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig

    settings, layers = dict(config), len(surgery.decoder_layers(model))
    if "dropped_layers" in settings:
        ShortGPTConfig(dropped_layers=round(settings["dropped_layers"] * layers)).prune(model, texts.batches)
        return
    count = round(settings.pop("share_of_layers") * layers)
    changes = CHANGES[settings.pop("baseline")] if "baseline" in settings else {}
    SlimLLMConfig(**{**settings, **changes, "pruned_layers": count, "seed": seed}).prune(model, texts.batches)


def gates() -> tuple[Claim, ...]:
    """Return the claims that get a verdict: margins hold on every calibration set."""

    def lower(id_: str, statement: str, arm: str, over: str, margin: float) -> Claim:
        return Claim(id_, statement, RelativeGain(START, arm, over), EverySeedAbove(margin))

    return (
        lower(
            "heads_over_activation",
            "Heads by Pearson, greedy exchange and regression: at least 8 % below activation norm and regression",
            "heads_pearson",
            "heads_activation",
            8,
        ),
        lower(
            "heads_over_random",
            "Heads by Pearson, greedy exchange and regression: at least 15 % below random heads and regression",
            "heads_pearson",
            "heads_random",
            15,
        ),
        lower(
            "regression",
            "At 20 % the regression lowers SlimLLM's perplexity by at least 10 %",
            "slimllm_20",
            "no_regression_20",
            10,
        ),
        lower(
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
        lower(
            "score_over_random",
            "FFN channels by SlimLLM's score: at least 50 % below random channels at 20 %",
            "ffn_slimllm",
            "ffn_random",
            50,
        ),
        lower(
            "layer_rule",
            "Sparing the layers that change their input most: at least 1.5 % below one ratio for all layers",
            "ffn_skip",
            "ffn_slimllm",
            1.5,
        ),
        *(
            Claim(
                f"recovery_{percent}",
                f"At {percent} %, after the same {STEPS} steps of recovery, below the random start",
                RelativeGain(AFTER, f"slimllm_{percent}", f"random_{percent}"),
                EverySeedAbove(0),
            )
            for percent in PUBLISHED
        ),
    )


def reported() -> tuple[Claim, ...]:
    """Return what is measured and has no gate: parity, and the table's differences."""

    def lower(arm: str, over: str, statement: str, metric: Metric = START, paper: str = "") -> Claim:
        id_ = f"{arm}_over_{over}" + ("_after" if metric is AFTER else "")
        return Claim(id_, statement, RelativeGain(metric, arm, over), paper=paper)

    papers = {
        "wanda_sp_20": "-1.7 % (LLaMA-7B, 15.95 against LoRAP's 15.69)",
        "wanda_sp_50": "33 % (LLaMA-7B, 37.89 against LoRAP's 56.96)",
        "llm_pruner_20": "16 % (LLaMA-7B, 15.95 against 19.09)",
        "llm_pruner_50": "66 % (LLaMA-7B, 37.89 against 112.44)",
    }
    claims = [
        lower("ffn_slimllm", "ffn_wanda", "FFN 20 %: SlimLLM's score below Wanda-style (expected: parity within 4 %)"),
        lower("ffn40_slimllm", "ffn40_wanda", "FFN 40 %: SlimLLM's score below Wanda-style (expected: parity)"),
        lower("ffn_slimllm", "ffn_no_pca", "FFN 20 %: gain by PCA weighting"),
        lower("ffn_slimllm", "ffn_keep0", "FFN 20 %: gain by keeping the lowest 1 %"),
        lower("ffn_skip", "ffn_skip_alpha0", "FFN 20 %: gain by alpha 10 over alpha 0"),
        lower("heads_pearson", "heads_no_greedy", "Heads: gain by the greedy exchange"),
        lower(
            "heads_pearson_unrepaired",
            "heads_activation_unrepaired",
            "Heads without regression: Pearson below activation norm (expected: far above, it is blind to scale)",
        ),
    ]
    for percent in PUBLISHED:
        ours = f"slimllm_{percent}"
        claims += [
            lower(ours, f"no_greedy_{percent}", f"{percent} %: gain by the greedy exchange"),
            lower(ours, f"no_layer_ratio_{percent}", f"{percent} %: gain by the layers' own ratios"),
        ]
        for name, title in {**BASELINES, "shortgpt": "whole layers by block influence (ShortGPT)"}.items():
            over = f"{name}_{percent}"
            claims.append(lower(ours, over, f"{percent} %: SlimLLM below {title}", paper=papers.get(over, "")))
            claims.append(lower(ours, over, f"{percent} %: the same after {STEPS} steps of recovery", AFTER))
    return tuple(claims)
