"""How a CausalLM gets its model: built from its configuration, recorded without its place, with the plans it asks for.

Configurations here are those of modules: `CausalLM.Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pangu_modules.common import registry
from pangu_modules.common.names import check_source
from pangu_modules.llm.lora import LoRAPlan
from pangu_modules.llm.models import pangu_embedded
from pangu_modules.llm.models.loading import load_causal_lm, new_causal_lm, plain_config
from pangu_modules.llm.models.names import EMBEDDED_PACKAGES
from pangu_modules.training.structure import Plan, find_plan


def check_names(config: Any) -> None:
    """Refuse misspelt names at once, also those that would be looked up much later.

    Raises:
        ValueError: a name is none of ours, no path here and no hub id.
    """
    for what, name in (("tokenizer", config.tokenizer), ("generation.assistant", config.generation.assistant)):
        if name is not None:
            check_source(name, what, EMBEDDED_PACKAGES)


def base_model(config: Any) -> Any:
    """Return the base model in training mode; under ``torch.device("meta")`` from its configuration alone.

    Raises:
        ValueError: the model cannot be found or built.
    """
    if config.architecture is not None:
        kernel = config.attn_implementation
        return new_causal_lm(config.architecture, config.model_args, attn_implementation=kernel)
    return load_causal_lm(
        str(config.model),
        attn_implementation=config.attn_implementation,
        from_config_only=torch.get_default_device().type == "meta",
        trust_remote_code=config.trust_remote_code,
    )


def recompute_activations(model: Any) -> None:
    """Make a transformers model recompute its activations in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its new name in transformers 5
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def model_as_plain_data(config: Any, model: Any) -> dict[str, Any]:
    """Return the fields that build a model of this architecture anywhere, in place of where it came from."""
    if config.trust_remote_code and not pangu_embedded.is_named(model.config):
        # Its class is known to its own folder alone.
        return {}
    architecture, model_args = plain_config(model.config)
    return {"model": None, "architecture": architecture, "model_args": model_args}


def with_place_of_code(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a caller gives for a checkpoint; of a model with code of its own also where that lies.

    Args:
        stored: configuration in the checkpoint.
        given: fields in place of stored ones.

    Raises:
        ValueError: the model comes with Python code, and ``trust_remote_code`` is not among what is given.
    """
    if stored.get("architecture") is not None or stored.get("model") is None:
        return dict(given)
    if not given.get("trust_remote_code"):
        raise ValueError(
            f"the checkpoint's model is built by Python code at {stored['model']!r}, and a checkpoint does not say "
            "what is run: if you trust that code, pass trust_remote_code=True (on the command line "
            "--module.trust_remote_code true)"
        )
    return {"model": stored["model"], **given}


def plans_asked_for(config: Any, model: Any) -> tuple[Plan, ...]:
    """Return the plan of the adapters, if the configuration asks for them, and of layers that differ in size.

    Raises:
        ValueError: the structure already holds adapters of another shape.
    """
    asked, present = config.lora, find_plan(config.structure, "lora")
    if asked is not None and isinstance(present, LoRAPlan) and present.lora != asked:
        raise ValueError(
            f"lora asks for {asked}, but init_checkpoint holds adapters of another shape ({present.lora}): "
            "give the same lora, leave it empty to go on with them, or merge them first with merge_lora()"
        )
    plans: list[Plan] = [] if asked is None else [LoRAPlan(lora=asked)]
    pruned = getattr(model.config, "layer_shapes", None) and not config.trust_remote_code
    if pruned and not any(plan.kind == "shape" for plan in config.structure):  # loaded from a pruned model's GGUF file
        plans.insert(0, registry.load("plan", "shape").of(model, source="gguf"))
    return tuple(plans)
