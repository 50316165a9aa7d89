"""Binarized and ternary models as GGUF files for llama.cpp, without loss: types Q1_0, TQ1_0 and TQ2_0.

Q1_0 holds 128 weights of a row in 18 bytes: a scale d in float16 and 16 bytes of bits in the order of `pack_signs`,
1 = +d, 0 = -d. TQ1_0 and TQ2_0 hold 256 weights -d, 0 and +d in 54 and 66 bytes; they hold binary weights too, and are
read by older versions. Every written file is read back and compared with the model. llama.cpp itself rounds activations
to 8 bits where it multiplies with these types, so its logits come close to the model's, but do not equal them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pangu_modules.llm.export.exported import ExportedModule
from pangu_modules.llm.export.gguf import Encoding, gguf_header, gguf_tensors, write_gguf
from pangu_modules.llm.export.options import ExportOptions
from pangu_modules.llm.models.gguf.families import decode, tensor_names
from pangu_modules.llm.onebit.packed_linear import binary_scale
from pangu_modules.llm.onebit.packing import final_linears

BinaryType = Literal["Q1_0", "TQ1_0", "TQ2_0"]


def export_q1_0(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-q1_0.gguf`` into the folder; see `write_binary_gguf`."""
    (options or ExportOptions()).refuse("gguf_q1_0", "dtype", "layout")
    write_binary_gguf(module, Path(folder) / "model-q1_0.gguf", final_linears(module), "Q1_0")


def export_tq1_0(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-tq1_0.gguf`` into the folder; see `write_binary_gguf`."""
    (options or ExportOptions()).refuse("gguf_tq1_0", "dtype", "layout")
    write_binary_gguf(module, Path(folder) / "model-tq1_0.gguf", final_linears(module, ternary=True), "TQ1_0")


def export_tq2_0(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write ``model-tq2_0.gguf`` into the folder; see `write_binary_gguf`."""
    (options or ExportOptions()).refuse("gguf_tq2_0", "dtype", "layout")
    write_binary_gguf(module, Path(folder) / "model-tq2_0.gguf", final_linears(module, ternary=True), "TQ2_0")


def write_binary_gguf(
    module: ExportedModule,
    path: str | Path,
    linears: Mapping[str, nn.Module],
    kind: BinaryType,
    *,
    pre_tokenizer: str | None = None,
) -> Path:
    """Write a model whose layers `linears` are binarized into one GGUF file; all other tensors are in float32.

    Args:
        module: see `write_gguf`.
        path: of the file.
        linears: the binarized layers by their full names in ``module.model``.
        kind: type of their weights.
        pre_tokenizer: see `write_gguf`.

    Returns:
        The path.

    Raises:
        ValueError: a layer is not binary (for TQ1_0 and TQ2_0: nor ternary), its width is no multiple of the type's
            block, its scales are no float16 numbers, or `write_gguf` refuses the model.
        RuntimeError: the file, read back, is not the model.
    """
    from gguf import GGMLQuantizationType, LlamaFileType

    check_widths(linears, kind)
    for name, linear in linears.items():
        _check_scale(linear, name, kind)
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

    return decode(stored, GGMLQuantizationType[kind]).numpy()


def ternary_scale(linear: nn.Module, name: str) -> Tensor:
    """Return the scale of each row of a layer that holds -s, 0 and +s, (out_features,) float32, at least 0.

    Raises:
        ValueError: a row holds more than one magnitude beside 0.
    """
    if not isinstance(linear, nn.Linear):
        return binary_scale(linear, name)  # which says what it is instead
    magnitudes = linear.weight.detach().abs()
    scale = magnitudes.amax(dim=1)
    wrong = (~((magnitudes == scale[:, None]) | (magnitudes == 0)).all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        values = linear.weight[wrong[0]].unique().numel()
        raise ValueError(
            f"{name} is not binary or ternary: row {wrong[0]} holds {values} values ({len(wrong)} such rows of "
            f"{len(scale)}); finalize the binarization (training does it at its end) before exporting"
        )
    return scale.float()


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


def _check_scale(linear: nn.Module, name: str, kind: BinaryType) -> None:
    if getattr(linear, "in_scale", None) is not None:
        raise ValueError(
            f"export: {name} scales its inputs, which GGUF cannot hold: train with input_scale=fold, or export 'packed'"
        )
    scale = binary_scale(linear, name) if kind == "Q1_0" else ternary_scale(linear, name)
    if not torch.equal(scale.half().float(), scale):
        raise ValueError(
            f"export: the row scales of {name} are no float16 numbers, so GGUF would change the model: train with "
            "scale_dtype=float16, which rounds them before the last evaluation, or export 'packed' or 'gguf'"
        )


def _gguf_names(model: Any, linears: Mapping[str, nn.Module]) -> set[str]:
    names = tensor_names(gguf_header(model).family, [f"{name}.weight" for name in linears], len(model.model.layers))
    return set(names.values())


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
