"""Exporting a language model as a transformers folder that loads without this library."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from pangu_modules.common import registry
from pangu_modules.common.files import atomic_folder, check_new
from pangu_modules.llm.export.exported import ExportedModule
from pangu_modules.llm.export.options import ExportOptions
from pangu_modules.llm.lora import has_adapters, merge_adapters
from pangu_modules.llm.models import pangu_embedded
from pangu_modules.llm.models.conversion import MODEL_FILE
from pangu_modules.llm.models.messages import quiet_transformers
from pangu_modules.llm.text_files import files_of_tokenizer
from pangu_modules.llm.tokenizers import make_readable, write_files

REMEDIES = {
    "sandwich_llama": "absorb its post-norms into the maps before them, and it is a Llama: with "
    "--callbacks.NAME.method.absorb.enabled true of PanguLightPruning, or PostNormAbsorption in a stage of its own"
}
"""What to do with a model of an architecture of this library, so that it can be exported."""

RELEASED_LAYOUTS = ("PanguProMoE",)
"""Architectures of this library with a layout that its authors released, so that others read the folder too."""


@runtime_checkable
class ModelWriter(Protocol):
    """A plan whose result transformers' own classes cannot hold, e.g. layers of different sizes, and that can write it.

    `export` asks the last such plan of the structure to write the model's part of the folder: weights in safetensors,
    ``config.json`` (with ``auto_map`` where a modelling file comes along) and ``generation_config.json``. Tokenizer
    and chat template are added afterwards.
    """

    def write_model(self, model: nn.Module, folder: Path) -> None:
        """Write the model (without adapters, on any device) into the folder, which exists and is empty."""


def export(module: ExportedModule, folder: str | Path, options: ExportOptions | None = None) -> Path:
    """Write weights, configuration, generation settings, tokenizer and chat template as a transformers folder.

    A model of the openPangu Embedded family is written as Llama under the family's class name, so that stock
    transformers and vLLM's class of that name both load it.

    Weights are written in ``options.dtype``, by default the type that the model was loaded from. The folder appears
    when it is complete. LoRA adapters are merged in a copy.

    Returns:
        The folder.

    Raises:
        ValueError: the model's shapes are not those of its configuration, and no plan can write it, or not in the
            layout that the options ask for; or transformers would read another tokenizer from the folder.
        FileExistsError: the folder holds something already.
    """
    check_new(folder, "export")
    options = options or ExportOptions()
    model = in_dtype(without_adapters(module.model), options.dtype_of(module))
    writer = _writer(module, options.layout)
    of_pangu = pangu_embedded.is_named(model.config)
    with atomic_folder(folder, holding=MODEL_FILE, replace=True) as temporary:
        if writer is not None:
            writer.write_model(model, temporary)
        else:
            write_plain_model(model, temporary)
        if of_pangu:
            pangu_embedded.write_name(temporary)
        write_files(files_of_tokenizer(module.runtime), temporary)
        if module.tokenizer is not None:
            make_readable(module.tokenizer, temporary, trust_remote_code=module.config.trust_remote_code)
    return Path(folder)


def _writer(module: ExportedModule, layout: str | None) -> ModelWriter | None:
    """Return the plan that writes the model, in the layout that is asked for; None where transformers can.

    Raises:
        ValueError: the model has no such layout.
    """
    writers = [plan for plan in module.config.structure if isinstance(plan, ModelWriter)]
    if layout is None:
        return writers[-1] if writers else None
    if not writers or not hasattr(writers[-1], "layout"):
        if layout == "uniform":
            return writers[-1] if writers else None
        raise ValueError(
            f"export: layout={layout!r} is one of a pruned model's, and this one was not pruned: leave it out"
        )
    plan: Any = writers[-1]
    changed: ModelWriter = plan.derive(layout=layout)
    return changed


@torch.no_grad()
def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model itself, or a copy with its parameters in another type; buffers stay as they are.

    Raises:
        ValueError: a weight is beyond the type's range.
    """
    if {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} <= {dtype}:
        return model
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        if not parameter.is_floating_point():
            continue
        narrow = parameter.data.to(dtype)
        if narrow.isinf().any() and parameter.isfinite().all():
            raise ValueError(f"export: {name} holds numbers beyond the range of {dtype}: export float32 or bfloat16")
        parameter.data = narrow
    return changed


def write_plain_model(model: Any, folder: Path) -> None:
    """Write a model whose shapes follow from its configuration.

    Raises:
        ValueError: they do not, or the architecture is known to this library alone.
    """
    if model.config.model_type not in RELEASED_LAYOUTS:
        refuse_own_architecture(model.config.model_type)
    differences = shape_differences(model)
    if differences:
        raise ValueError(
            f"export: {len(differences)} tensors do not have the shape that config.json describes, the first is "
            f"{differences[0]}: layers of different sizes, or of another kind, need a plan that can write them"
        )
    architectures = model.config.architectures
    with quiet_transformers():
        model.save_pretrained(folder)
    model.config.architectures = architectures  # saving puts its own class there


def refuse_own_architecture(model_type: str) -> None:
    """Raise a ValueError with the remedy if only this library knows the architecture, so that no folder can hold it."""
    if model_type in registry.names("architecture"):
        remedy = REMEDIES.get(model_type, "bring the model into one that it knows first, or export another format")
        raise ValueError(f"export: transformers does not know the architecture {model_type!r}; {remedy}")


def shape_differences(model: Any) -> list[str]:
    """Return the tensors of a model that differ from what transformers builds from its configuration."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    expected = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return [f"{name}: {found.get(name, 'missing')} instead of {expected.get(name, 'none')}" for name in names]


def without_adapters(model: nn.Module) -> nn.Module:
    """Return the model itself, or a copy with its LoRA adapters merged."""
    if not has_adapters(model):
        return model
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    return merged
