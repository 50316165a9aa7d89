"""openPangu Embedded as what it computes: a Llama with biases on q, k, v and o.

Released folders say ``model_type: PanguEmbedded`` and bring Python code that needs an Ascend NPU to be imported. None
of it is run: their configuration is translated, and their weights have Llama's names already. The model is
transformers' Llama; that it belongs to the family is kept in its configuration's ``architectures``, and so in every
export, which transformers reads as Llama, and vLLM as the class of that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_modules.common.files import write_atomically
from pangu_modules.common.names import nearest
from pangu_modules.llm.models.conversion import MODEL_FILE

MODEL_TYPE = "PanguEmbedded"
CLASS = "PanguEmbeddedForCausalLM"
LLAMA = "llama"

DEFAULTS: dict[str, Any] = {
    "vocab_size": 153_376,
    "hidden_size": 4096,
    "intermediate_size": 12_800,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 16_000_000.0,
    "attention_bias": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 45_892,
}
"""What the released configuration (of 7B) has where a file says nothing; Llama's own defaults are others."""

OF_THE_FILES = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "rope_scaling")
"""Fields that Llama's configuration need not have: they say how the files were written, or have a newer name there."""


def llama_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Llama's configuration for those of a PanguEmbedded one.

    Raises:
        ValueError: ``bias`` and ``attention_bias``, two names of one thing, differ.
    """
    given = dict(fields)
    if "bias" in given:
        bias = given.pop("bias")
        if given.setdefault("attention_bias", bias) != bias:
            raise ValueError(
                f"{MODEL_TYPE}: bias={bias!r} and attention_bias={given['attention_bias']!r} are one thing: give one"
            )
    defaults = {name: value for name, value in DEFAULTS.items() if not _has(given, name)}
    return {**defaults, **given, "architectures": [CLASS]}


def config_of_folder(declared: Mapping[str, Any]) -> Any:
    """Return the Llama configuration for a released ``config.json``.

    Args:
        declared: what the file holds, ``model_type`` PanguEmbedded.

    Raises:
        ValueError: a field is unknown, so that the model may compute something else, or the sizes do not fit.
    """
    from transformers import LlamaConfig

    known = {*LlamaConfig().to_dict(), *OF_THE_FILES, "bias", "rope_theta"}
    for name, value in declared.items():
        if name not in known and value is not None:
            raise ValueError(
                f"its config.json has {name}={value!r}, which no {MODEL_TYPE} that is known here has."
                f"{nearest(name, known)} Remove the field if the model computes the same without it"
            )
    kept = {name: value for name, value in declared.items() if name not in ("model_type", "auto_map")}
    return LlamaConfig(**llama_fields(kept))


def is_declared(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a ``config.json`` are those of a released folder."""
    return fields.get("model_type") == MODEL_TYPE


def is_named(config: Any) -> bool:
    """Whether a transformers configuration is a Llama's that belongs to the family."""
    return config.model_type == LLAMA and CLASS in (config.architectures or ())


def write_name(folder: Path) -> None:
    """Name the family in the ``config.json`` of an exported Llama; other layouts name their own class."""
    file = folder / MODEL_FILE
    fields = json.loads(file.read_text(encoding="utf-8"))
    if fields.get("model_type") == LLAMA:
        write_atomically(file, json.dumps({**fields, "architectures": [CLASS]}, indent=2) + "\n")


def _has(given: Mapping[str, Any], name: str) -> bool:
    return name in given or (name == "rope_theta" and "rope_parameters" in given)
