"""Packed models: binarized layers as bits, in memory and in a folder, and back, exactly.

A folder holds ``packed.safetensors``, ``config.json``, ``generation_config.json`` and the tokenizer's files. Of each
packed layer it has the bits (``packed``), the scales of the rows (``scale``; in float16 where that loses nothing) and
what else the layer has (``bias``, ``in_scale``); all other tensors are stored as they are. transformers alone does not
load it, and says that the weights are missing: `load_packed` does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pangu_modules.common.files import atomic_folder, check_new
from pangu_modules.llm.export.exported import ExportedModule
from pangu_modules.llm.models.conversion import MODEL_FILE
from pangu_modules.llm.models.loading import load_config
from pangu_modules.llm.onebit.packed_linear import PackedBinaryLinear
from pangu_modules.llm.text_files import files_of_tokenizer
from pangu_modules.llm.tokenizers import write_files

if TYPE_CHECKING:
    from pangu_modules.llm.export.options import ExportOptions

WEIGHTS_FILE = "packed.safetensors"
FORMAT = "pangu-packed-binary"
VERSION = 1


@dataclass(frozen=True)
class PackedSize:
    """What a packed model takes on disk; sizes in bytes."""

    weights: int  # number of binarized weights
    weight_bytes: int  # their bits and scales
    file_bytes: int  # the whole file of weights

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of bits and scales for each binarized weight."""
        return self.weight_bytes / self.weights

    def __str__(self) -> str:
        each = f"{self.bytes_per_weight:.4f} bytes each"
        packed, whole = self.weight_bytes / 1e6, self.file_bytes / 1e6
        return f"{self.weights:,} binarized weights in {packed:.2f} MB ({each}); the whole file has {whole:.2f} MB"


def pack_model(model: nn.Module, linears: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of the model with these layers packed; it shares all other tensors with the model.

    Args:
        model: any model; transformers' ``generate`` works on the copy as it does on the model.
        linears: the binarized layers by their full names, as `binarized_linears` finds them.

    Raises:
        ValueError: a layer is not binary (yet).
    """
    packed = {id(linear): PackedBinaryLinear.from_linear(linear, name) for name, linear in linears.items()}
    return _copy_with(model, packed).eval()


def unpack_model(model: nn.Module) -> nn.Module:
    """Return a copy of a packed model with plain linear layers in float32; it shares all other tensors."""
    return _copy_with(model, {id(layer): layer.to_linear() for layer in packed_layers(model).values()})


def packed_layers(model: nn.Module) -> dict[str, PackedBinaryLinear]:
    """Return the packed layers of a model by their full names."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedBinaryLinear)}


def save_packed(model: Any, folder: str | Path, files: Mapping[str, str] | None = None) -> PackedSize:
    """Write a packed transformers model to a folder, which appears when it is complete and replaces a model there.

    Args:
        model: as `pack_model` returns it.
        folder: the folder.
        files: further text files, name -> text: those of the tokenizer.

    Returns:
        The sizes.

    Raises:
        ValueError: no layer is packed, or other layers have shapes that ``config.json`` does not describe.
        FileExistsError: the folder holds something that is not a model.
    """
    from safetensors.torch import save_file

    layers = packed_layers(model)
    if not layers:
        raise ValueError("the model has no packed layers: pack it first with pack_model(model, linears)")
    records = {
        name: {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "in_scale": layer.in_scale is not None,
        }
        for name, layer in layers.items()
    }
    _check_skeleton(model, records)
    check_new(folder, "folder")
    tensors = _tensors(model)
    weight_bytes = 0
    for name in layers:
        tensors[f"{name}.scale"] = _shortest(tensors[f"{name}.scale"])
        parts = (tensors.get(f"{name}.{part}") for part in ("packed", "scale", "in_scale"))
        weight_bytes += sum(part.nbytes for part in parts if part is not None)
    metadata = {"format": FORMAT, "version": str(VERSION), "layers": json.dumps(records)}
    with atomic_folder(folder, holding=MODEL_FILE, replace=True) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata=metadata)
        model.config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
        write_files(files or {}, temporary)
        file_bytes = (temporary / WEIGHTS_FILE).stat().st_size
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    return PackedSize(weights, weight_bytes, file_bytes)


def load_packed(folder: str | Path) -> nn.Module:
    """Return the packed transformers model of a folder, on the CPU and in evaluation mode, for ``generate``.

    No dense weight of a packed layer is ever in memory.

    Raises:
        ValueError: the folder holds no packed model, one of a later version, or an incomplete one.
    """
    from safetensors import safe_open
    from transformers import GenerationConfig

    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"no {WEIGHTS_FILE} in {folder}: give a folder that save_packed, or export as 'packed', wrote")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or int(metadata["version"]) > VERSION:
            found = f"{metadata.get('format')} version {metadata.get('version')}"
            raise ValueError(f"{path} is {found}; this library reads {FORMAT} up to version {VERSION}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    records = json.loads(metadata["layers"])
    for name in records:
        tensors[f"{name}.scale"] = tensors[f"{name}.scale"].float()
    model = _skeleton(load_config(str(folder)), records)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing:
        raise ValueError(f"{path} is incomplete, it lacks {', '.join(missing[:3])} ({len(missing)} tensors)")
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def export_packed(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> None:
    """Write a module whose binarization is final as a packed folder with its tokenizer, and print the sizes.

    Raises:
        ValueError: the module is not binarized, or not finally, or an option is given.
    """
    if options is not None:
        options.refuse("packed", "dtype", "layout")
    packed = pack_model(module.model, final_linears(module))
    print(f"packed: {save_packed(packed, folder, files_of_tokenizer(module.runtime))}")


def final_linears(module: ExportedModule, *, ternary: bool = False) -> dict[str, nn.Linear]:
    """Return the binarized layers of a module by their full names; `ternary`: take those of a ternary method too.

    Raises:
        ValueError: the module is not binarized, or not finally.
    """
    from pangu_modules.llm.onebit.plan import BinarizePlan, binarized_linears

    plans = [plan for plan in module.config.structure if isinstance(plan, BinarizePlan)]
    if not plans:
        raise ValueError("the model has no binarized layers: train it with the ProgressiveBinarization callback first")
    return binarized_linears(module.model, plans[-1], ternary=ternary)


def _copy_with(model: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """Return a copy that shares the model's tensors and has other modules in place of those with these ids."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**shared, **replaced})


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model on the CPU, tied tensors once."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if first.setdefault(id(t), name) == name}


def _shortest(scale: Tensor) -> Tensor:
    """Return the scales in float16 where that is exact."""
    half = scale.half()
    return half if torch.equal(half.float(), scale.float()) else scale


def _skeleton(config: Any, records: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the model of a configuration with packed layers; parameters are on the meta device."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):  # buffers outside of the state, e.g. of rotary embeddings, are real
        model = AutoModelForCausalLM.from_config(config)
    for name, record in records.items():
        model.set_submodule(name, PackedBinaryLinear(**record, device="meta"))
    return model


def _check_skeleton(model: Any, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what would not load again."""
    expected = {name: tensor.shape for name, tensor in _skeleton(model.config, records).state_dict().items()}
    found = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors do not have the shape that config.json describes, the first is {wrong[0]} "
            f"({tuple(found.get(wrong[0], ()))}): layers of different sizes cannot be packed into a folder"
        )
