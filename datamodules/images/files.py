"""Image files: which of a folder's files are images, and one of any kind read as RGB of eight bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pangu_modules.common.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

OnBad = Literal["error", "skip"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
SYSTEM_FOLDERS = ("__MACOSX",)  # like hidden ones, they hold no images of the user's
WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than eight bits a channel; its own conversion cuts their values off at 255."""


class BadImageError(UsageError):
    """A file that cannot be read as an image; the message names it.

    A worker process of torch's loader passes an error on as its class with a traceback as text; the sentence alone is
    kept of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str | Path) -> Image.Image:
    """Return an image as RGB of eight bits, upright as its EXIF orientation says; of an animation the first frame.

    What is transparent shows a white ground. Sixteen bits a channel become eight by their share of 65535. Other wide
    values are shares of white up to 1 (floats alone), eight-bit levels up to 255, and sixteen-bit levels up to 65535.

    Raises:
        BadImageError: the file cannot be read, or has values of no known range.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            upright = _upright(file)
            if upright.mode in WIDE:
                return Image.fromarray(eight_bits(upright, file.format)).convert("RGB")
            if upright.has_transparency_data:
                picture = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of many kinds at damaged files
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
        raise BadImageError(
            f"{path} cannot be read as an image ({reason}): replace or remove it, or leave such files out with "
            "data.on_bad_file=skip"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF data say; damaged EXIF data do not make the picture unreadable."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises errors of many kinds
        return image
    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def eight_bits(image: Image.Image, kind: str | None) -> np.ndarray:
    """Return a grey image of a wide mode as levels (height, width) uint8, the level that stands for transparent white.

    Args:
        image: in one of the modes `WIDE`.
        kind: Pillow's name of the file's format: where it is one that has sixteen bits at most, so have the values.

    Raises:
        ValueError: a value is negative, not finite or above 65535.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # false for NaN too
        raise ValueError(f"its values are from {low:g} to {high:g}; known are 0 to 1, to 255 and to 65535")
    if image.mode == "F" and high <= 1:
        white = 1.0
    elif image.mode.startswith("I;16") or kind in ("PNG", "PPM") or high > 255:
        white = 65535.0
    else:
        white = 255.0
    levels = np.round(values * (255 / white)).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels[values == key] = 255
    return levels


def image_paths(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, in a fixed order; hidden files and folders are passed over.

    Files of other kinds are counted in a warning.
    """
    files = [
        Path(place) / name
        for place, _, names in sorted(os.walk(folder, followlinks=True))
        if not any(_is_passed_over(part) for part in Path(place).relative_to(folder).parts)
        for name in sorted(names)
        if not name.startswith(".")
    ]
    images = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    if len(images) < len(files):
        others = sorted({path.suffix or path.name for path in files} - {path.suffix for path in images})
        rank_zero_warn(
            f"{folder}: {len(files) - len(images)} of {len(files)} files are no images that are read "
            f"({', '.join(others[:5])}); read are {', '.join(SUFFIXES)}"
        )
    return images


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of a folder's folders, without hidden ones; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_passed_over(path.name))


def readable(paths: Sequence[Path], on_bad_file: OnBad, what: str) -> list[Path]:
    """Return the files that can be read; with "error" all of them, unread: one that cannot stops where it is needed.

    Args:
        paths: image files.
        on_bad_file: "skip" reads every file once, in threads, and leaves out and counts those that cannot be read.
        what: names them in the message.
    """
    if on_bad_file == "error":
        return list(paths)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding Python's lock
        faults = list(pool.map(_fault, paths))
    bad = [fault for fault in faults if fault]
    if bad:
        rank_zero_warn(
            f"{what}: {len(bad)} of {len(paths)} files left out (on_bad_file=skip); the first: "
            f"{bad[0].partition(': replace')[0]}"
        )
    return [path for path, fault in zip(paths, faults, strict=True) if not fault]


def _fault(path: Path) -> str:
    try:
        read_image(path)
    except BadImageError as error:
        return str(error)
    return ""


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def labelled(folder: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """Yield each image of the class folders and its class's number.

    Raises:
        FileNotFoundError: a class has no image.
    """
    for number, name in enumerate(classes):
        paths = image_paths(folder / name)
        if not paths:
            raise FileNotFoundError(
                f"no image in {folder / name}: put some there ({', '.join(SUFFIXES)}), or remove the folder"
            )
        yield from ((path, number) for path in paths)
