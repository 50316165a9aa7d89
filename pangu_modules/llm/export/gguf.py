"""Writing models as GGUF files, for llama.cpp and what is built on it.

Llama (any rope), Mistral, Qwen2, Qwen3, Gemma 1 to 3, and every pruned model that computes as Llama does, whatever the
sizes of its layers: these are written under llama.cpp's architecture `deci`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pangu_modules.common.files import atomic_file
from pangu_modules.llm.export.exported import ExportedModule
from pangu_modules.llm.export.gguf_vocabulary import pre_tokenizer_name, vocabulary_keys
from pangu_modules.llm.export.options import ExportOptions
from pangu_modules.llm.export.transformers import refuse_own_architecture, without_adapters
from pangu_modules.llm.models.decoder import LINEAR_LAYERS
from pangu_modules.llm.models.gguf import rope
from pangu_modules.llm.models.gguf.families import head_dim_of, interleave_halves, tensor_names, to_gguf
from pangu_modules.llm.models.gguf.hyperparameters import Header, Sizes, describe
from pangu_modules.llm.models.gguf.tokenizer import LLAMA3_PATTERN, PRE_TOKENIZERS

__all__ = (
    "LLAMA3_PATTERN",
    "PRE_TOKENIZERS",
    "Encoding",
    "export_gguf",
    "export_gguf_f16",
    "export_gguf_q8_0",
    "gguf_tensors",
    "interleave_halves",
    "pre_tokenizer_name",
    "write_gguf",
)

HALF_MAX = torch.finfo(torch.float16).max
SHORT_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Encoding:
    """How a file stores tensors other than in float32.

    Args:
        file_type: GGUF's number for the file as a whole.
        encode: takes name in GGUF and float32 tensor, returns what is stored and its `GGMLQuantizationType`; bytes are
            uint8 of shape (rows, bytes of a row).
    """

    file_type: int
    encode: Callable[[str, np.ndarray], tuple[np.ndarray, Any]]


def export_gguf(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-f32.gguf`` (or f16, bf16: ``options.dtype``, by default the loaded type) into the folder."""
    options = options or ExportOptions()
    options.refuse("gguf", "layout")
    dtype = options.dtype_of(module)
    encoding = None if dtype == torch.float32 else matrices_as(SHORT_NAMES[dtype].upper())
    write_gguf(module, Path(folder) / f"model-{SHORT_NAMES[dtype]}.gguf", encoding=encoding)


def export_gguf_f16(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-f16.gguf`` into the folder: matrices in float16, all else in float32."""
    (options or ExportOptions()).refuse("gguf_f16", "dtype", "layout")
    write_gguf(module, Path(folder) / "model-f16.gguf", encoding=matrices_as("F16"))


def export_gguf_q8_0(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-q8_0.gguf`` into the folder: matrices in 8.5 bits a weight, all else in float32.

    Matrices whose rows are no multiple of 32 wide, which Q8_0 cannot hold, are in float16, as llama.cpp does it.
    """
    (options or ExportOptions()).refuse("gguf_q8_0", "dtype", "layout")
    write_gguf(module, Path(folder) / "model-q8_0.gguf", encoding=matrices_as("Q8_0"))


def matrices_as(kind: str) -> Encoding:
    """Return the encoding that stores matrices as F16, BF16 or Q8_0, and vectors in float32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
    from gguf.quants import quantize

    number = GGMLQuantizationType[kind]
    block = GGML_QUANT_SIZES[number][0]

    def encode(name: str, tensor: np.ndarray) -> tuple[np.ndarray, Any]:
        if tensor.ndim < 2:
            return tensor, None
        chosen = number if tensor.shape[1] % block == 0 else GGMLQuantizationType.F16
        largest = float(np.abs(tensor).max())
        if chosen == GGMLQuantizationType.F16 and largest > HALF_MAX:
            raise ValueError(f"export: {name} holds {largest:g}, beyond float16's range; export float32 or bfloat16")
        stored = quantize(tensor, chosen)
        return np.asarray(stored), chosen

    return Encoding(int(LlamaFileType[f"MOSTLY_{kind}"]), encode)


def write_gguf(
    module: ExportedModule, path: str | Path, *, pre_tokenizer: str | None = None, encoding: Encoding | None = None
) -> Path:
    """Write model, tokenizer and chat template into one GGUF file, which appears when it is complete.

    Args:
        module: a model of a family that GGUF knows, with a BPE tokenizer; LoRA adapters are merged in a copy.
        path: of the file.
        pre_tokenizer: llama.cpp's name of how text is cut before merging; by default found from the tokenizer.
        encoding: how tensors are stored; by default all in float32.

    Returns:
        The path.

    Raises:
        ValueError: no architecture of llama.cpp computes what the model does, or GGUF cannot hold the tokenizer.
    """
    from gguf import GGUFWriter

    model: Any = without_adapters(module.model)
    header = gguf_header(model)
    vocabulary = vocabulary_keys(module, pre_tokenizer)
    architecture = header.family.architecture
    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        writer.add_file_type(0 if encoding is None else encoding.file_type)  # 0: all tensors in float32
        for name, value in header.keys.items():
            _add(writer, f"{architecture}.{name}", value)
        for name, value in vocabulary.items():
            _add(writer, name, value)
        for name, tensor in gguf_tensors(model).items():
            stored, kind = (tensor, None) if encoding is None else encoding.encode(name, tensor)
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def gguf_header(model: Any) -> Header:
    """Return what a file says of a transformers model beside its tensors.

    Raises:
        ValueError: no architecture of llama.cpp computes what the model does.
    """
    refuse_own_architecture(model.config.model_type)
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not hasattr(layers[0], "self_attn"):
        raise ValueError(
            f"export: GGUF is written for decoders of Llama's form; this model is {model.config.model_type!r}"
        )
    head_dim = head_dim_of(model.config)
    sizes = []
    biases = set()
    for layer in layers:
        found: dict[str, Tensor] = dict(layer.state_dict())
        rows = {name.split(".")[-2]: tensor for name, tensor in found.items() if name.endswith("_proj.weight")}
        if set(rows) != set(LINEAR_LAYERS):
            raise ValueError(f"export: GGUF is written for layers of {', '.join(LINEAR_LAYERS)}, not {', '.join(rows)}")
        heads, kv_heads = (rows[name].shape[0] // head_dim for name in ("q_proj", "k_proj"))
        sizes.append(Sizes(heads, kv_heads, rows["down_proj"].shape[1]))
        biases |= {name.split(".")[-2] for name in found if name.endswith("_proj.bias")}
    return describe(model.config, tuple(sizes), biases)


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """Return the weights by their names in GGUF, float32, rows in GGUF's order, and Llama 3's factors of the rope."""
    header = gguf_header(model)
    head_dim = head_dim_of(model.config)
    tied = model.config.tie_word_embeddings  # readers take the embedding where there is no output matrix
    state = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    names = tensor_names(header.family, state, len(header.layers))
    tensors = {
        names[name]: to_gguf(header.family, name, tensor.detach().float().cpu(), head_dim).numpy()
        for name, tensor in state.items()
    }
    return tensors if header.rope.factors is None else tensors | {rope.FACTORS: header.rope.factors}


def _add(writer: Any, name: str, value: Any) -> None:
    """Write one key with the type that llama.cpp expects of it."""
    if name == "tokenizer.chat_template":
        writer.add_chat_template(value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value:  # an empty array has no type: leave it out
        writer.add_array(name, value)
