"""The weighting model of a round as a safetensors file that holds its configuration, for use with other models."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pangu_modules.common.files import write_atomically
from pangu_modules.llm.weighting.model import DataWeightingModel

ENTRY = "data_weighting_model"  # of the file's metadata: the configuration


def round_file(folder: str | Path, number: int) -> Path:
    """Return where a run keeps the weighting model of a round."""
    return Path(folder) / f"dwm_round{number}.safetensors"


def encoder_folder(folder: str | Path, number: int) -> Path:
    """Return where a run keeps the language model whose hidden states the weighting model of a round reads."""
    return Path(folder) / f"dwm_round{number}_encoder"


def find_encoder(folder: str | Path, number: int) -> Path:
    """Return the `encoder_folder` of an earlier run, which may have been written when rounds were called stages."""
    present, old = encoder_folder(folder, number), Path(folder) / f"dwm_stage{number}_encoder"
    return old if old.is_dir() and not present.is_dir() else present


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
        raise ValueError(f"no weighting model at {str(path)!r}: give a dwm_round*.safetensors file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if ENTRY not in metadata:
            raise ValueError(f"{str(path)!r} is no weighting model: it was not written by save_weighting_model")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    model: DataWeightingModel = DataWeightingModel.Config.model_validate_json(metadata[ENTRY]).build()
    model.load_state_dict(tensors)
    return model.requires_grad_(False)


def load_rounds(folder: str | Path) -> dict[int, DataWeightingModel]:
    """Return the weighting models of an earlier run by round; files of the old name, ``dwm_stage{k}``, are read too.

    Raises:
        ValueError: the folder holds none.
    """
    files: dict[int, Path] = {}
    for word in ("stage", "round"):  # where a run was resumed by newer code, the present name is the newer file
        for path in sorted(Path(folder).glob(f"dwm_{word}*.safetensors")):
            if match := re.fullmatch(rf"dwm_{word}(\d+)", path.stem):
                files[int(match[1])] = path
    if not files:
        raise ValueError(
            f"{str(folder)!r} holds no dwm_round*.safetensors: give the folder of a run with a DWMReweighting callback "
            "that has finished its warm-up rounds"
        )
    return {number: load_weighting_model(files[number]) for number in sorted(files)}
