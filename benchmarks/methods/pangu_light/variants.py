"""The variants of Pangu Light's claims, group by group: each row prunes SmolLM2 in one way."""

from __future__ import annotations

from typing import Any

from benchmarks.methods.pruning.task import Variant

OFF: dict[str, Any] = {"clap": {"enabled": False}, "slnp": "none"}
CLAP: dict[str, Any] = {"clap": {"enabled": True}, "slnp": "none"}
SLNP: dict[str, Any] = {"clap": {"enabled": False}, "slnp": "slnp"}


def width(size: int, factors: str) -> Variant:
    """Return a hidden size with a choice of factors on norm gains."""
    title = f"hidden size {size}, norm gains: {factors}"
    return Variant(f"w{size}_{factors}", title, {**OFF, "slnp": factors, "hidden_size": size})


def random_channels(plan: int) -> Variant:
    """Return hidden size 512 with channels drawn at random."""
    config = {**OFF, "hidden_size": 512, "selection": "random", "selection_seed": plan}
    return Variant(f"w512_random{plan}", f"hidden size 512, random channels {plan}", config)


WIDTHS_AND_CHANNELS = (
    width(540, "none"),
    width(540, "slnp"),
    width(540, "calibrated"),
    width(512, "none"),
    width(512, "slnp"),
    width(512, "calibrated"),
    width(512, "inverse"),
    width(450, "none"),
    width(450, "slnp"),
    width(450, "calibrated"),
    random_channels(0),
    random_channels(1),
    random_channels(2),
)


def part(name: str, title: str, seeds: int | None = None, **config: Any) -> Variant:
    """Return FFN channels or heads pruned alone."""
    return Variant(name, title, {**OFF, **config}, seeds=seeds)


PARTS = (
    part("ffn1280", "1280 of 1536 FFN channels by score", intermediate_size=1280),
    part("ffn1280_random", "1280 of 1536 FFN channels at random", intermediate_size=1280, selection="random"),
    part("groups2", "2 of 3 KV groups by score", num_key_value_heads=2),
    part("groups2_random", "2 of 3 KV groups at random", num_key_value_heads=2, selection="random"),
    part("heads6", "6 of 9 query heads by output norm", 1, num_attention_heads=6),
    part(
        "heads6_contribution",
        "6 of 9 query heads by norm after o_proj",
        1,
        num_attention_heads=6,
        head_score="contribution",
    ),
)


def dropped(layers: int, groups: int, clap: bool, steps: tuple[int, ...] = ()) -> Variant:
    """Return so many layers dropped and KV groups kept, with CLAP or without."""
    title = f"{layers} layers dropped, {groups} KV groups{', CLAP' if clap else ''}"
    config = {**(CLAP if clap else OFF), "layers_removed": layers, "num_key_value_heads": groups}
    return Variant(f"drop{layers}_k{groups}_{'clap' if clap else 'plain'}", title, config, steps)


STRONGEST: dict[str, Any] = {"layers_removed": 6, "num_key_value_heads": 2, "slnp": "none"}

DEPTHS = (
    dropped(6, 2, False, (4, 16)),  # the strongest case is recovered
    dropped(6, 2, True, (4, 16)),
    dropped(6, 3, False),
    dropped(6, 3, True),
    dropped(4, 2, False),
    dropped(4, 2, True),
    dropped(4, 3, False),
    dropped(4, 3, True),
    dropped(2, 2, False),
    dropped(2, 2, True),
    dropped(2, 3, False),
    dropped(2, 3, True),
    Variant(
        "drop6_k2_no_fold",
        "6 layers dropped, 2 KV groups, CLAP without folding gains",
        {**STRONGEST, "clap": {"fold_gain": False}},
        seeds=1,
    ),
    Variant(
        "drop6_k2_layer_mean",
        "6 layers dropped, 2 KV groups, CLAP, scores per layer",
        {**STRONGEST, "clap": {"score_norm": "layer_mean"}},
        seeds=1,
    ),
    Variant("drop6_k3_laco", "6 layers dropped and merged (LaCo)", {**OFF, "layers_removed": 6, "laco": True}, seeds=1),
)


def joint(name: str, title: str, seeds: int | None = 1, **config: Any) -> Variant:
    """Return the joint target: 26 of 30 layers, 512 of 576 hidden and 1280 of 1536 FFN channels, recovered."""
    target = {"layers_removed": 4, "hidden_size": 512, "intermediate_size": 1280}
    return Variant(f"joint_{name}", f"joint target, {title}", {**config, **target}, (4, 16, 32), seeds)


JOINT_TARGET = (
    joint("slnp", "SLNP", None, **SLNP),
    joint("none", "neither", None, **OFF),
    joint("clap", "CLAP", **CLAP),
    joint("both", "CLAP and SLNP (Pangu Light)", slnp="slnp"),
    joint("minitron", "Minitron's aggregation", **OFF, agg_batch="l2", agg_seq="mean"),
    joint("random", "at random", **OFF, selection="random"),
)
