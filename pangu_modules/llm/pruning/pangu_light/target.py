"""Target shapes of uniform pruning and the parameters they have, without any weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import Field, PositiveInt

from pangu_modules.common.config import Config

AXES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")


class TargetShape(Config):
    """Sizes to prune to; an axis left out keeps its size."""

    hidden_size: PositiveInt | None = Field(None, description="Hidden channels d'.")
    intermediate_size: PositiveInt | None = Field(None, description="FFN channels F' of every layer.")
    num_attention_heads: PositiveInt | None = Field(
        None, description="Query heads H', a multiple of the KV groups; left out, the groups keep all their heads."
    )
    num_key_value_heads: PositiveInt | None = Field(None, description="KV groups K' of every layer.")
    num_hidden_layers: PositiveInt | None = Field(None, description="Layers L'.")


@dataclass(frozen=True)
class ModelShape:
    """All five sizes of a uniform decoder."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int

    @property
    def queries_per_group(self) -> int:
        """Query heads that share a key/value head, q."""
        return self.num_attention_heads // self.num_key_value_heads

    def as_target(self) -> TargetShape:
        """Return the shape as a target with every axis given."""
        return TargetShape(**asdict(self))


def shape_of_config(config: Any) -> ModelShape:
    """Read the five sizes from a transformers configuration."""
    return ModelShape(**{axis: int(getattr(config, axis)) for axis in AXES})


def resolve_target(source: ModelShape, target: TargetShape, *, round_to: int = 1) -> ModelShape:
    """Return the complete target shape.

    Without ``num_attention_heads`` the remaining KV groups keep all their query heads.

    Args:
        source: shape of the unpruned model.
        target: sizes asked for.
        round_to: hidden and FFN sizes that change must be multiples of this.

    Raises:
        ValueError: an axis is larger than the source's or not a multiple of `round_to`, or the heads do not divide
            evenly among the groups.
    """
    groups = target.num_key_value_heads or source.num_key_value_heads
    heads = target.num_attention_heads or groups * source.queries_per_group
    sizes = {axis: getattr(target, axis) or getattr(source, axis) for axis in AXES}
    resolved = ModelShape(**sizes | {"num_attention_heads": heads, "num_key_value_heads": groups})
    for axis in AXES:
        _check_axis(axis, getattr(resolved, axis), getattr(source, axis), round_to)
    if heads % groups:
        raise ValueError(
            f"target.num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}: every KV group "
            "needs the same number of query heads"
        )
    if resolved.queries_per_group > source.queries_per_group:
        raise ValueError(
            f"target.num_attention_heads={heads} asks for {heads // groups} query heads in each of {groups} KV groups, "
            f"the model has {source.queries_per_group}: take at most {groups * source.queries_per_group}"
        )
    return resolved


def shape_for_parameters(config: Any, target_params: float, *, round_to: int = 1) -> ModelShape:
    """Return a shape within a parameter budget whose width, FFN and depth shrink by one common ratio.

    Heads and KV groups stay. The ratio is the largest that fits, with widths rounded down to multiples of `round_to`
    and layers to the nearest number; what rounding leaves of the budget goes to the FFN, then to layers.

    Args:
        config: transformers configuration of the unpruned model.
        target_params: parameters; a number up to 1 is a share of the model's.
        round_to: multiple for hidden and FFN sizes.

    Raises:
        ValueError: the budget is larger than the model, or smaller than the smallest shape.
    """
    source = shape_of_config(config)
    whole = count_parameters(config, source)
    budget = target_params * whole if target_params <= 1 else target_params
    smallest = count_parameters(config, _scaled(source, 0, round_to))
    if not smallest <= budget <= whole:
        raise ValueError(
            f"target_params={target_params:g} must be between the smallest shape's {smallest} and the model's {whole} "
            f"parameters (or a share up to 1); round_to={round_to}"
        )
    steps = 4096
    low, high = 0, steps + 1  # the parameters rise with the ratio: bisect for the largest that fits
    while high - low > 1:
        middle = (low + high) // 2
        fits = count_parameters(config, _scaled(source, middle / steps, round_to)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    best = _scaled(source, low / steps, round_to)
    for axis, step in (("intermediate_size", round_to), ("num_hidden_layers", 1)):
        for size in range(getattr(best, axis), getattr(source, axis) + 1, step):
            larger = replace(best, **{axis: size})
            best = larger if count_parameters(config, larger) <= budget else best
    return best


def target_parameters(config: Any, target: TargetShape) -> int:
    """Return the number of parameters of the model of `config` pruned to `target`, computed without weights.

    Args:
        config: transformers configuration (Llama, Mistral, Qwen2, Qwen3 families or `SandwichLlamaConfig`).
        target: sizes to prune to.

    Raises:
        ValueError: the target does not fit the model.
    """
    return count_parameters(config, resolve_target(shape_of_config(config), target))


def count_parameters(config: Any, shape: ModelShape) -> int:
    """Return the parameters of a model of `config`'s family in `shape`.

    ``V*d + L*(d*h*(2H + 2K) + 3*d*F + n*d) + d`` with n = 2 norms per layer (4 in a sandwich model), twice ``V*d`` if
    the head is untied, plus biases and the norms over head_dim where the family has them.
    """
    family = config.model_type
    d, channels = shape.hidden_size, shape.intermediate_size
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    attention_bias = bool(getattr(config, "attention_bias", False))
    per_layer = d * (2 * queries + 2 * keys) + 3 * d * channels
    per_layer += (4 if family == "sandwich_llama" else 2) * d
    per_layer += 2 * head_dim if family == "qwen3" else 0
    per_layer += queries + 2 * keys if attention_bias or family == "qwen2" else 0
    per_layer += d if attention_bias else 0
    per_layer += 2 * channels + d if getattr(config, "mlp_bias", False) else 0
    embeddings = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    return int(embeddings + shape.num_hidden_layers * per_layer + d)


def _check_axis(axis: str, wanted: int, available: int, round_to: int) -> None:
    if wanted > available:
        raise ValueError(f"target.{axis}={wanted} is larger than the model's {available}: pruning only removes")
    rounds = axis in ("hidden_size", "intermediate_size")
    if rounds and wanted != available and wanted % round_to:
        low = wanted // round_to * round_to
        choice = f"{low} or {low + round_to}" if low else str(round_to)
        raise ValueError(f"target.{axis}={wanted} is not a multiple of round_to={round_to}: take {choice}")


def _scaled(source: ModelShape, ratio: float, round_to: int) -> ModelShape:
    def rounded(size: int) -> int:
        return size if ratio >= 1 else min(size, max(round_to, int(size * ratio) // round_to * round_to))

    return replace(
        source,
        hidden_size=rounded(source.hidden_size),
        intermediate_size=rounded(source.intermediate_size),
        num_hidden_layers=max(1, round(source.num_hidden_layers * ratio)),
    )
