"""Reading documents: text files, JSON lines, datasets of the hub, and the text inside Python itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYTHON_TOPICS = "python_topics"
BIBLE = "bible_"
SUFFIXES = (".txt", ".jsonl")


def read_texts(source: str, field: str) -> list[str]:
    """Return the documents of a source, in a fixed order; empty ones are left out.

    Args:
        source: ``"python_topics"`` (the language reference that Python carries), ``"bible_kjv"`` (any version of the
            packages `pythonbible-*`), a .txt file (one document), a .jsonl file (one in each line), a folder of these,
            or a dataset: its hub id, ``id:configuration`` or local folder.
        field: name of the text in JSON lines and datasets.

    Raises:
        FileNotFoundError: there is no such file or folder, or it holds no text.
        ValueError: a line is no JSON, or has no such field.
    """
    if source == PYTHON_TOPICS:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]
    if source.startswith(BIBLE):
        from datamodules.samples.embedded import bible_text

        return [bible_text(source.removeprefix(BIBLE))]
    texts = [str(row[field]) for row in read_rows(source, field)]
    return [text for text in texts if text.strip()]


def read_rows(source: str, field: str) -> list[dict[str, Any]]:
    """Return the rows of JSON lines, text files or a dataset, as `read_texts` does; each has `field`."""
    path = Path(source).expanduser()
    if path.is_file():
        return list(_rows_of_file(path, field))
    if _is_saved_dataset(path):
        return list(_rows_of_dataset(source, field))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"source={source!r}: no {' or '.join(SUFFIXES)} file below {path.absolute()}")
        return [row for file in files for row in _rows_of_file(file, field)]
    if _looks_like_a_path(source):
        raise FileNotFoundError(f"source={source!r}: nothing there; searched {path.absolute().parent}{_there(path)}")
    return list(_rows_of_dataset(source, field))


def download(source: str) -> None:
    """Download a dataset of the hub, if the source is one; the datasets library keeps it."""
    path = Path(source).expanduser()
    embedded = source == PYTHON_TOPICS or source.startswith(BIBLE)
    if not embedded and not path.exists() and not _looks_like_a_path(source):
        _load_dataset(source)


def _rows_of_file(path: Path, field: str) -> Iterator[dict[str, Any]]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is neither {' nor '.join(SUFFIXES)}: bring it into one of these forms")
    if path.suffix == ".txt":
        yield {field: path.read_text(encoding="utf-8")}
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
            yield _checked(row, field, f"{path}, line {number}")


def _rows_of_dataset(source: str, field: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_load_dataset(source)):
        yield _checked(row, field, f"row {number} of {source}")


def _checked(row: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(row, dict) or field not in row:
        known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where} has no field {field!r}, only: {known}; name the right one in the configuration")
    return row


def _load_dataset(source: str) -> Any:
    from datasets import load_dataset, load_from_disk

    path = Path(source).expanduser()
    if _is_saved_dataset(path):
        saved = load_from_disk(str(path))
        return saved["train"] if isinstance(saved, dict) else saved
    name, _, configuration = source.partition(":")
    try:
        return load_dataset(name, configuration or None, split="train")
    except Exception as error:  # the library raises errors of many kinds when it is offline or knows no such name
        raise FileNotFoundError(
            f"source={source!r} is no file or folder here, and no dataset of this name could be loaded: {error}"
        ) from error


def _looks_like_a_path(source: str) -> bool:
    return Path(source).suffix in SUFFIXES or source.startswith((".", "~", "/"))


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _there(path: Path) -> str:
    folder = path.absolute().parent
    names = sorted(file.name for file in folder.iterdir() if file.name[0] != ".")[:5] if folder.is_dir() else []
    return f" (it holds {', '.join(names)}, ...)" if names else " (which is empty or missing)"
