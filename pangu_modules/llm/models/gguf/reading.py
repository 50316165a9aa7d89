"""Reading models from GGUF files, dequantised, with everything that the file holds, or an error that names the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.llm.models.decoder import LINEAR_LAYERS, MLP_PROJECTIONS, layer_records
from pangu_modules.llm.models.gguf import rope
from pangu_modules.llm.models.gguf.by_transformers import read_by_transformers
from pangu_modules.llm.models.gguf.families import Family, from_gguf, head_dim_of, tensor_names
from pangu_modules.llm.models.gguf.file import GgufFile, gguf_file
from pangu_modules.llm.models.gguf.hyperparameters import Header, model_fields

TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id", "unknown": "unk_token_id"}
INPUTS, GATES = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}


def read_config(path: str | Path) -> Any:
    """Return the transformers configuration of a file's model.

    Raises:
        ValueError: see `read_model`.
    """
    return read_model(path, weights=False).config


def read_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    weights: bool = True,
) -> nn.Module:
    """Return a file's model as a plain transformers model.

    Layers of different sizes, and biases on `o_proj` and `down_proj` alone, are kept; ``config.layer_shapes`` lists
    them then, as in a pruned model. A bias that only some layers have is zero in the others where need be.

    Args:
        path: of the file.
        dtype: of the weights.
        attn_implementation: transformers' name of the attention kernel.
        weights: False: a model of the right shapes on the meta device.

    Raises:
        ValueError: it is no whole GGUF file, or it holds something that transformers' model would not take.
    """
    with gguf_file(path) as file:
        if not file.is_known():
            return read_by_transformers(file, dtype, attn_implementation, weights)
        header = file.header()
        biases = _biases(file, header.family, len(header.layers))
        model = _build(_config(file, header, biases), dtype, attn_implementation, weights)
        if header.family.pairs:
            _fit_layers(model, header, biases)
        if weights:
            _load(model, file, header)
        else:
            _names(model, file, header)
        return model


def _config(file: GgufFile, header: Header, biases: Sequence[set[str]]) -> Any:
    from transformers import AutoConfig

    fields = model_fields(header)
    kind = header.family.model_type
    if header.family.pairs:
        kind, more = _llama_kind(fields, set().union(*biases))
        fields |= more
    if kind == "qwen2" and fields["head_dim"] * fields["num_attention_heads"] == fields["hidden_size"]:
        del fields["head_dim"]  # Qwen2's configuration does not declare it
    ids = {field: file.keys.get(f"tokenizer.ggml.{name}_token_id") for name, field in TOKEN_IDS.items()}
    if ids["unk_token_id"] is None:
        del ids["unk_token_id"]
    fields |= ids
    fields["vocab_size"] = file.shape("token_embd.weight")[0] if "token_embd.weight" in file.tensors else 0
    return AutoConfig.for_model(kind, **fields, tie_word_embeddings="output.weight" not in file.tensors)


def _llama_kind(fields: dict[str, Any], biases: set[str]) -> tuple[str, dict[str, Any]]:
    """Return a model type of transformers that computes what GGUF's Llama does, and the fields it needs for that."""
    if fields["hidden_size"] % fields["num_attention_heads"] == 0:
        return "llama", {"attention_bias": bool(biases & INPUTS), "mlp_bias": bool(biases & GATES)}
    # transformers' Llama wants a hidden size that the number of heads divides; Mistral and Qwen2 compute the same.
    if biases & GATES:
        raise ValueError(
            f"embedding_length={fields['hidden_size']} is no multiple of {fields['num_attention_heads']} heads, and no "
            "model of transformers has that together with biases on gate_proj or up_proj"
        )
    return ("qwen2", {}) if biases & INPUTS else ("mistral", {"sliding_window": None})


def _build(config: Any, dtype: torch.dtype, attn_implementation: str, weights: bool) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    if not weights:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **options)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced: reading a file draws nothing
        return AutoModelForCausalLM.from_config(config, **options)


def _biases(file: GgufFile, family: Family, num_layers: int) -> list[set[str]]:
    """Return which projections have a bias in each layer."""
    names = [f"model.layers.{i}.{block}.{name}.bias" for i in range(num_layers) for name, block in _BLOCKS.items()]
    found = tensor_names(family, names, num_layers)
    biases: list[set[str]] = [set() for _ in range(num_layers)]
    for name, stored in found.items():
        if stored in file.tensors:
            _, _, layer, _, projection, _ = name.split(".")
            biases[int(layer)].add(projection)
    return biases


_BLOCKS = {name: "mlp" if name in MLP_PROJECTIONS else "self_attn" for name in LINEAR_LAYERS}


def _fit_layers(model: Any, header: Header, biases: Sequence[set[str]]) -> None:
    """Give every layer its own sizes, and the output biases that the configuration cannot express."""
    config = model.config
    head_dim, hidden = head_dim_of(config), config.hidden_size
    special = len(set(header.layers)) > 1
    for layer, sizes, own in zip(model.model.layers, header.layers, biases, strict=True):
        queries, keys = sizes.num_heads * head_dim, sizes.num_kv_heads * head_dim
        channels = sizes.feed_forward
        shapes = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, channels),
            "up_proj": (hidden, channels),
            "down_proj": (channels, hidden),
        }
        for name, (inputs, outputs) in shapes.items():
            block = getattr(layer, _BLOCKS[name])
            old = getattr(block, name)
            bias = old.bias is not None or name in own
            special |= old.bias is None and bias
            if (old.in_features, old.out_features, old.bias is not None) != (inputs, outputs, bias):
                new = nn.Linear(inputs, outputs, bias=bias, dtype=old.weight.dtype, device=old.weight.device)
                setattr(block, name, new)
        layer.self_attn.num_key_value_groups = sizes.num_heads // sizes.num_kv_heads
        layer.mlp.intermediate_size = channels
    if special:
        config.layer_shapes = layer_records(model)


def _names(model: Any, file: GgufFile, header: Header) -> dict[str, str]:
    """Return the file's name of each of the model's tensors that it holds.

    Raises:
        ValueError: the file lacks a tensor, has one too many, or one of another shape.
    """
    state = model.state_dict()
    tied = model.config.tie_word_embeddings
    wanted = [name for name in state if not (tied and name == "lm_head.weight")]
    names = tensor_names(header.family, wanted, len(header.layers))
    missing = [stored for stored in names.values() if stored not in file.tensors and not stored.endswith(".bias")]
    extra = [stored for stored in file.tensors if stored not in names.values() and stored != rope.FACTORS]
    for title, found in (("has no tensor", missing), ("holds a tensor that the model does not take,", extra)):
        if found:
            raise ValueError(f"it {title} {found[0]} ({len(found)} in all)")
    names = {name: stored for name, stored in names.items() if stored in file.tensors}
    for name, stored in names.items():
        if file.shape(stored) != tuple(state[name].shape):
            raise ValueError(f"its tensor {stored} has shape {file.shape(stored)}, not {tuple(state[name].shape)}")
    return names


@torch.no_grad()
def _load(model: Any, file: GgufFile, header: Header) -> None:
    head_dim = head_dim_of(model.config)
    names = _names(model, file, header)
    for name, target in model.state_dict().items():
        if name in names:
            target.copy_(from_gguf(header.family, name, file.tensor(names[name]), head_dim))
        elif name.endswith(".bias"):
            target.zero_()
