"""Opening a GGUF file: its keys, its tensors, and one sentence where it is no such file, or a damaged one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pangu_modules.llm.models.gguf import rope
from pangu_modules.llm.models.gguf.families import FAMILIES, decode
from pangu_modules.llm.models.gguf.hyperparameters import Header, understand

FLOAT_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufFile:
    """An open file: `keys` by their full names, `tensors` as the `gguf` package reads them."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture."""
        return str(self.keys["general.architecture"])

    def tensor(self, name: str) -> Tensor:
        """Return one tensor as float32, in torch's order of dimensions."""
        stored = self.tensors[name]
        return decode(stored.data, stored.tensor_type).reshape(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in torch's order, the widest dimension last."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def dtype(self) -> torch.dtype:
        """Return the type of the matrices where they are floats of one type, otherwise float32."""
        kinds = {stored.tensor_type.name for name, stored in self.tensors.items() if len(self.shape(name)) > 1}
        return FLOAT_TYPES.get(next(iter(kinds)), torch.float32) if len(kinds) == 1 else torch.float32

    def header(self) -> Header:
        """Return what the file says of the model; its architecture must be in `FAMILIES`.

        Raises:
            ValueError: it says something that the model cannot be told.
        """
        prefix = f"{self.architecture}."
        keys = {name.removeprefix(prefix): value for name, value in self.keys.items() if name.startswith(prefix)}
        factors = self.tensor(rope.FACTORS).numpy() if rope.FACTORS in self.tensors else None
        return understand(self.architecture, keys, factors)

    def is_known(self) -> bool:
        """Whether this library reads the architecture itself."""
        return self.architecture in FAMILIES


@contextmanager
def gguf_file(path: str | Path) -> Iterator[GgufFile]:
    """Yield an open file; errors inside the block are raised again with the file's name.

    Raises:
        ValueError: it is no GGUF file, or a damaged one, or one of several parts.
    """
    try:
        status = Path(path).stat()
        yield _open(Path(path), status.st_size, status.st_mtime_ns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@lru_cache(maxsize=1)  # configuration, weights, type and tokenizer are asked for one after the other
def _open(path: Path, size: int, changed: int) -> GgufFile:
    """Open a file; its size and time of change tell whether it is still the one that was opened last."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        keys = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"it is no GGUF file, or cut off or damaged ({str(error)[:80]})") from error
    if "general.architecture" not in keys:
        raise ValueError("it names no general.architecture")
    if keys.get("split.count", 0) > 1:
        raise ValueError(f"it is one of {keys['split.count']} parts; merge them with llama.cpp's llama-gguf-split")
    if keys.get("general.type", "model") != "model":
        raise ValueError(f"it holds no model, but general.type={keys['general.type']!r}")
    return GgufFile(path, keys, {tensor.name: tensor for tensor in reader.tensors})
