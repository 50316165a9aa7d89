"""What an arm of SlimLLM's claims does with SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.task import Texts

if TYPE_CHECKING:
    from torch import nn


def prune(model: nn.Module, config: Mapping[str, Any], texts: Texts, seed: int) -> None:
    """Prune a model as a variant's config says."""
    from pangu_modules.llm.models.decoder import decoder_layers
    from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig, drop_layers
    from pangu_modules.llm.pruning.slimllm.config import BASELINES as CHANGES
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
    from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

    settings, layers = dict(config), len(decoder_layers(model))
    if "dropped_layers" in settings:
        dropped = round(settings["dropped_layers"] * layers)
        drop_layers(model, ShortGPTConfig(dropped_layers=dropped), texts.batches)
        return
    count = round(settings.pop("share_of_layers") * layers)
    changes = CHANGES[settings.pop("baseline")] if "baseline" in settings else {}
    method = SlimLLMConfig(**{**settings, **changes, "pruned_layers": count, "seed": seed})
    prune_slimllm(model, method, texts.batches)
