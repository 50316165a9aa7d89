"""Binarized Llamas as GGUF files for llama.cpp, without loss: types Q1_0, TQ1_0 and TQ2_0.

Q1_0 holds 128 weights of a row in 18 bytes: a scale d in float16 and 16 bytes of bits in the order of `pack_signs`,
1 = +d, 0 = -d. TQ1_0 and TQ2_0 (256 ternary weights in 54 and 66 bytes) hold +d and -d too, and are read by older
versions. Every written file is read back and compared with the model. llama.cpp itself rounds activations to 8 bits
where it multiplies with these types, so its logits come close to the model's, but do not equal them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from pangu_modules.llm.export.gguf import Encoding, gguf_tensors, write_gguf
from pangu_modules.llm.onebit.packed_linear import binary_scale
from pangu_modules.llm.onebit.packing import final_linears

if TYPE_CHECKING:
    from pangu_modules.llm.causal_lm import CausalLM

BinaryType = Literal["Q1_0", "TQ1_0", "TQ2_0"]


def export_q1_0(module: CausalLM, folder: str | Path) -> None:
    """Write ``model-q1_0.gguf`` into the folder; see `write_binary_gguf`."""
    write_binary_gguf(module, Path(folder) / "model-q1_0.gguf", final_linears(module), "Q1_0")


def export_tq1_0(module: CausalLM, folder: str | Path) -> None:
    """Write ``model-tq1_0.gguf`` into the folder; see `write_binary_gguf`."""
    write_binary_gguf(module, Path(folder) / "model-tq1_0.gguf", final_linears(module), "TQ1_0")


def export_tq2_0(module: CausalLM, folder: str | Path) -> None:
    """Write ``model-tq2_0.gguf`` into the folder; see `write_binary_gguf`."""
    write_binary_gguf(module, Path(folder) / "model-tq2_0.gguf", final_linears(module), "TQ2_0")


def write_binary_gguf(
    module: CausalLM,
    path: str | Path,
    linears: Mapping[str, nn.Module],
    kind: BinaryType,
    *,
    pre_tokenizer: str | None = None,
) -> Path:
    """Write a Llama whose layers `linears` are binarized into one GGUF file; all other tensors are in float32.

    Args:
        module: see `write_gguf`.
        path: of the file.
        linears: the binarized layers by their full names in ``module.model``.
        kind: type of their weights.
        pre_tokenizer: see `write_gguf`.

    Returns:
        The path.

    Raises:
        ValueError: a layer is not binary, its width is no multiple of the type's block, its scales are no float16
            numbers, or `write_gguf` refuses the model.
        RuntimeError: the file, read back, is not the model.
    """
    from gguf import GGMLQuantizationType, LlamaFileType

    check_widths(linears, kind)
    for name, linear in linears.items():
        _check_scale(linear, name)
    names = _gguf_names(module.model, linears)
    number = GGMLQuantizationType[kind]

    def encode(name: str, tensor: np.ndarray) -> tuple[np.ndarray, Any]:
        return (encode_rows(tensor, kind), number) if name in names else (tensor, None)

    file_type = int(LlamaFileType[f"MOSTLY_{kind}"])
    written = write_gguf(module, path, pre_tokenizer=pre_tokenizer, encoding=Encoding(file_type, encode))
    wrong = _difference(written, gguf_tensors(module.model), names, kind)
    if wrong:
        written.unlink()
        raise RuntimeError(f"{path}, read back, is not the model: {wrong}")
    return written


def encode_rows(rows: np.ndarray, kind: BinaryType) -> np.ndarray:
    """Return binary rows, (out, in) float32, as GGUF's blocks: (out, bytes of a row) uint8."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if kind != "Q1_0":
        return np.asarray(quantize(rows, GGMLQuantizationType[kind]))
    out, columns = rows.shape
    bits = np.packbits(rows >= 0, axis=1, bitorder="little").reshape(out, -1, 16)
    scale = np.abs(rows[:, :1]).astype("<f2").view(np.uint8)
    blocks = np.broadcast_to(scale[:, None, :], (out, columns // 128, 2))
    return np.concatenate([blocks, bits], axis=2).reshape(out, -1)


def decode_rows(stored: np.ndarray, kind: BinaryType) -> np.ndarray:
    """Return the rows that `encode_rows` encoded, (out, in) float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if kind != "Q1_0":
        return np.asarray(dequantize(stored, GGMLQuantizationType[kind]))
    blocks = stored.reshape(len(stored), -1, 18)
    scale = blocks[:, :, :2].copy().view("<f2").astype(np.float32)
    signs = np.unpackbits(blocks[:, :, 2:], axis=2, bitorder="little") * np.float32(2) - 1
    return (signs * scale).reshape(len(stored), -1)


def check_widths(linears: Mapping[str, nn.Module], kind: BinaryType) -> None:
    """Refuse layers whose width is no multiple of the type's block.

    Raises:
        ValueError: with the widths, the layers, and the formats that can hold the model.
    """
    wrong = {name: layer for name, layer in linears.items() if _width(layer) % _block(kind)}
    if not wrong:
        return
    widths = {name.rpartition(".")[2]: _width(layer) for name, layer in wrong.items()}
    listed = ", ".join(f"{name} ({width})" for name, width in widths.items())
    other = [
        f"gguf_{name.lower()}"
        for name in get_args(BinaryType)
        if not any(_width(layer) % _block(name) for layer in linears.values())
    ]
    raise ValueError(
        f"export: {kind} needs in_features that are multiples of {_block(kind)}, which {len(wrong)} of {len(linears)} "
        f"layers do not have: {listed}. Formats that hold this model: {', '.join([*other, 'packed', 'gguf'])} "
        "and transformers (dense weights with the same values, without saving)"
    )


def _block(kind: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def _width(linear: nn.Module) -> int:
    return int(linear.in_features)  # type: ignore[arg-type]


def _check_scale(linear: nn.Module, name: str) -> None:
    if getattr(linear, "in_scale", None) is not None:
        raise ValueError(
            f"export: {name} scales its inputs, which GGUF cannot hold: train with input_scale=fold, or export 'packed'"
        )
    scale = binary_scale(linear, name)
    if not torch.equal(scale.half().float(), scale):
        raise ValueError(
            f"export: the row scales of {name} are no float16 numbers, so GGUF would change the model: train with "
            "scale_dtype=float16, which rounds them before the last evaluation, or export 'packed' or 'gguf'"
        )


def _gguf_names(model: Any, linears: Mapping[str, nn.Module]) -> set[str]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    return {str(names.get_name(f"{name}.weight", try_suffixes=(".weight",))) for name in linears}


def _difference(path: Path, expected: Mapping[str, np.ndarray], encoded: set[str], kind: BinaryType) -> str:
    """Read the file back; return what differs from the model's tensors, or nothing."""
    from gguf import GGUFReader

    found = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    for name in {**expected, **found}:
        if name not in found or name not in expected:
            return f"tensor {name} is only in one of them"
        values = decode_rows(found[name], kind) if name in encoded else found[name]
        if not np.array_equal(values, expected[name]):
            return f"tensor {name} differs"
    return ""
