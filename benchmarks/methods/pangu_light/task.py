"""What an arm of Pangu Light's claims does with SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.task import Texts

if TYPE_CHECKING:
    from torch import nn


def prune(model: nn.Module, config: Mapping[str, Any], texts: Texts, seed: int) -> None:
    """Prune a model as a variant's config says; scores of the unpruned model are shared within a group."""
    from pangu_modules.llm.models.decoder import decoder_layers
    from pangu_modules.llm.pruning.pangu_light import pipeline as pangu_light
    from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig

    settings = dict(config)
    axes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    target = {axis: settings.pop(axis) for axis in axes if axis in settings}
    layers = len(decoder_layers(model)) - settings.pop("layers_removed", 0)
    settings.setdefault("selection_seed", seed)
    method = PanguLightConfig(target={**target, "num_hidden_layers": layers}, **settings)
    key = f"{method.agg_batch} {method.agg_seq} {method.head_score}"
    if key not in texts.shared:
        texts.shared[key] = pangu_light.score(model, texts.batches, method)
    selection = pangu_light.select(model, texts.batches, method, scores=texts.shared[key])
    pangu_light.apply_selection(model, selection)
