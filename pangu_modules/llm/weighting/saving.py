"""The weighting model of a stage as a safetensors file that holds its configuration, for use with other models."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pangu_modules.common.files import write_atomically
from pangu_modules.llm.weighting.model import DataWeightingModel

ENTRY = "data_weighting_model"  # of the file's metadata: the configuration


def stage_file(folder: str | Path, stage: int) -> Path:
    """Return where a run keeps the weighting model of a stage."""
    return Path(folder) / f"dwm_stage{stage}.safetensors"


def encoder_folder(folder: str | Path, stage: int) -> Path:
    """Return where a run keeps the language model whose hidden states the weighting model of a stage reads."""
    return Path(folder) / f"dwm_stage{stage}_encoder"


def save_weighting_model(model: DataWeightingModel, path: str | Path) -> Path:
    """Write weights and configuration to one safetensors file, atomically; returns its path."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # A single entry: several come in random order, and equal models should make equal files.
    return write_atomically(path, save(tensors, {ENTRY: json.dumps(model.config.plain())}))


def load_weighting_model(path: str | Path) -> DataWeightingModel:
    """Return the model that `save_weighting_model` wrote, frozen, on the CPU.

    Raises:
        ValueError: there is no such file, or it is not a weighting model.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise ValueError(f"no weighting model at {str(path)!r}: give a dwm_stage*.safetensors file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if ENTRY not in metadata:
            raise ValueError(f"{str(path)!r} is no weighting model: it was not written by save_weighting_model")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    model: DataWeightingModel = DataWeightingModel.Config.model_validate_json(metadata[ENTRY]).build()
    model.load_state_dict(tensors)
    return model.requires_grad_(False)


def load_stages(folder: str | Path) -> dict[int, DataWeightingModel]:
    """Return the weighting models of an earlier run by stage.

    Raises:
        ValueError: the folder holds none.
    """
    files = {path: re.fullmatch(r"dwm_stage(\d+)", path.stem) for path in sorted(Path(folder).glob("*.safetensors"))}
    stages = {int(match[1]): load_weighting_model(path) for path, match in files.items() if match}
    if not stages:
        raise ValueError(
            f"{str(folder)!r} holds no dwm_stage*.safetensors: give the folder of a run with a DWMReweighting callback "
            "that has finished its warm-up stages"
        )
    return stages
