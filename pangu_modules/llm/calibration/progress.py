"""Progress of a layer-by-layer walk on disk, so that a killed run continues at the next layer with the same result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pangu_modules.common.config import Config
from pangu_modules.common.files import atomic_file, write_atomically
from pangu_modules.llm.calibration.stream import Stream
from pangu_modules.llm.models import decoder
from pangu_modules.training.objectives import Batch


class WalkProgress:
    """Saved state of a walk: the finished layers' weights and the hidden states that reach the next layer.

    Every walk has a folder of its own, named after its configuration, calibration tokens and model, so that the
    progress of another run is never taken up. ``progress.json`` is replaced last: a kill in between loses one layer.

    Args:
        folder: parent of the folders of all walks; None keeps nothing.
        fingerprint: what identifies the walk, see `fingerprint`.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder).expanduser() / fingerprint
        self._records: list[dict[str, Any]] = []

    def restore(
        self, model: nn.Module, stream: Stream, reshape: Callable[[nn.Module, dict[str, Any]], None]
    ) -> list[dict[str, Any]]:
        """Bring model and stream to where the last run stopped; return the finished layers' records.

        Args:
            model: the model as it was before the walk, changed in place.
            stream: the calibration stream before the first layer, moved to the next unfinished one.
            reshape: gives a layer, in place, the shapes that its record describes; its weights are loaded afterwards.
        """
        if self.folder is None or not (self.folder / "progress.json").is_file():
            return []
        self._records = json.loads((self.folder / "progress.json").read_text())
        layers = decoder.decoder_layers(model)
        for index, record in enumerate(self._records):
            reshape(layers[index], record)
            layers[index].load_state_dict(load_file(self._layer_file(index)))
        saved = load_file(self._stream_file(len(self._records)))
        for number, hidden in enumerate(stream.hidden):
            hidden.copy_(saved[str(number)])
        return list(self._records)

    def save(self, layer: nn.Module, record: Mapping[str, Any], stream: Stream) -> None:
        """Record that the next layer is finished.

        Args:
            layer: the finished layer.
            record: JSON data to get back from `restore`.
            stream: the stream behind the layer.
        """
        if self.folder is None:
            return
        index = len(self._records)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(self._layer_file(index), layer.state_dict())
        _write_tensors(self._stream_file(index + 1), {str(i): hidden for i, hidden in enumerate(stream.hidden)})
        self._records.append(dict(record))
        write_atomically(self.folder / "progress.json", json.dumps(self._records))
        self._stream_file(index).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the saved state of a finished walk."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _layer_file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"layer_{index:03d}.safetensors"

    def _stream_file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"stream_{index:03d}.safetensors"


def fingerprint(config: Config, model: nn.Module, batches: Sequence[Batch]) -> str:
    """Return a name that differs between configurations, models (shapes and weight sums) and calibration tokens."""
    digest = hashlib.sha256(json.dumps(config.plain(), sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().sum(dtype=torch.float64))
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {total!r}".encode())
    for batch in batches:
        for key in ("input_ids", "attention_mask"):
            if batch.get(key) is not None:
                digest.update(batch[key].cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_file(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
