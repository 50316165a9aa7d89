"""The variants of SlimLLM's claims, group by group: each row prunes SmolLM2 in one way."""

from __future__ import annotations

from typing import Any

from benchmarks.methods.pruning.task import Variant

STEPS = 8

# Shares are of heads and FFN channels, i.e. of FFN and attention parameters together (79 % of the model).
PUBLISHED: dict[int, dict[str, Any]] = {  # mean share over the pruned layers, their share of all layers, alpha
    20: {"base_share": 0.25, "share_of_layers": 0.8, "alpha": 10.0},
    50: {"base_share": 0.5 * 30 / 28, "share_of_layers": 28 / 30, "alpha": 7.0},
}
BASELINES = {
    "random": "random heads and channels",
    "magnitude": "weight magnitude",
    "minitron": "mean activation (Minitron)",
    "wanda_sp": "activation norm times weight norm (Wanda, structured)",
    "flap": "fluctuation, mean folded into a bias (FLAP)",
    "llm_pruner": "first-order Taylor (LLM-Pruner)",
}


def whole(percent: int, name: str, description: str, *, all_recovered: bool = False, **config: Any) -> Variant:
    """Return a way to prune heads and FFN; it is recovered on the first calibration set, or on all."""
    trained = None if all_recovered else 1
    title = f"{percent} %: {description}"
    return Variant(f"{name}_{percent}", title, config, steps=(STEPS,), trained_seeds=trained)


def table(percent: int) -> tuple[Variant, ...]:
    """Return SlimLLM, SlimLLM without each of its parts, and the baselines, at one share."""
    published = PUBLISHED[percent]
    uniform: dict[str, Any] = {"base_share": percent / 100, "share_of_layers": 1.0, "alpha": 0.0}
    return (
        whole(percent, "slimllm", "SlimLLM", all_recovered=True, **published),
        whole(percent, "no_greedy", "SlimLLM without the greedy exchange", **published, greedy=False),
        whole(percent, "no_regression", "SlimLLM without the regression", **published, recovery="none"),
        whole(percent, "no_layer_share", "SlimLLM with one share for all layers", **uniform),
        *(
            whole(percent, name, description, all_recovered=name == "random", **uniform, baseline=name)
            for name, description in BASELINES.items()
        ),
        whole(percent, "shortgpt", "whole layers by block influence", dropped_layers=percent / 100),
    )


TWENTY_PERCENT, FIFTY_PERCENT = table(20), table(50)


def ffn(name: str, description: str, percent: int = 20, *, seeds: int | None = None, **config: Any) -> Variant:
    """Return the FFN pruned alone."""
    alone = {"head_unit": "none", "share_of_layers": 1.0, "alpha": 0.0, "base_share": percent / 100}
    return Variant(name, f"FFN {percent} %: {description}", {**alone, **config}, seeds=seeds)


SKIP: dict[str, Any] = {"base_share": 0.25, "share_of_layers": 0.8}

FFN = (
    ffn("ffn_slimllm", "SlimLLM's score, repaired"),
    ffn("ffn_random", "random, repaired", ffn_criterion="random"),
    ffn("ffn_magnitude", "weight magnitude, repaired", ffn_criterion="magnitude"),
    ffn("ffn_wanda", "Wanda-style, repaired", ffn_criterion="wanda_down"),
    ffn("ffn_skip", "24 layers by similarity, alpha 10", **SKIP, alpha=10.0),
    ffn("ffn_skip_alpha0", "24 layers by similarity, alpha 0", **SKIP, seeds=1),
    ffn("ffn_no_pca", "without PCA weighting", pca_weighting=False, seeds=1),
    ffn("ffn_keep0", "without the kept 1 %", keep_least_share=0.0, seeds=1),
    ffn("ffn40_slimllm", "SlimLLM's score, repaired", 40),
    ffn("ffn40_unrepaired", "SlimLLM's score, not repaired", 40, recovery="none"),
    ffn("ffn40_wanda", "Wanda-style, repaired", 40, ffn_criterion="wanda_down", seeds=1),
)
"""The channel criteria, the repair and the layer rule."""


def heads(name: str, description: str, *, seeds: int | None = None, **config: Any) -> Variant:
    """Return one of three KV groups removed in every layer, and nothing else."""
    alone = {"ffn_unit": "none", "share_of_layers": 1.0, "alpha": 0.0, "base_share": 1 / 3}
    return Variant(name, f"one KV group of three: {description}", {**alone, **config}, seeds=seeds)


ACTIVATION: dict[str, Any] = {"head_criterion": "activation"}

HEADS = (
    heads("heads_pearson", "Pearson and greedy exchange, repaired"),
    heads("heads_activation", "activation norm, repaired", **ACTIVATION),
    heads("heads_random", "random, repaired", head_criterion="random"),
    heads("heads_no_greedy", "Pearson alone, repaired", greedy=False, seeds=1),
    heads("heads_pearson_unrepaired", "Pearson and greedy exchange, not repaired", recovery="none", seeds=1),
    heads("heads_activation_unrepaired", "activation norm, not repaired", **ACTIVATION, recovery="none", seeds=1),
)
"""The head criteria."""
