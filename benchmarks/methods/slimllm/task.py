"""What an arm of SlimLLM's claims does with SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.task import Texts

if TYPE_CHECKING:
    from torch import nn


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
