"""Reading documents: text files, JSON lines, Parquet, datasets of the hub, and the text inside Python itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.text.files import read_text, text_lines
from datamodules.text.rows import BadRows, OnBad, checked_row, row_text, shown, without_nulls
from pangu_modules.common.names import check_source

PYTHON_TOPICS = "python_topics"
BIBLE = "bible_"
SUFFIXES = (".txt", ".jsonl")
TABLE = ".parquet"


def read_texts(source: str, field: str, on_bad_row: OnBad = "error") -> list[str]:
    """Return the documents of a source, in a fixed order; null and empty ones are left out, and null ones counted.

    Args:
        source: ``"python_topics"`` (the language reference that Python carries), ``"bible_kjv"`` (any version of the
            packages `pythonbible-*`), a .txt file (one document), a .jsonl file (one in each line), a .json file (a
            list of them), a .parquet file, a folder of .txt and .jsonl files or of .parquet files, or a dataset: its
            hub id, ``id:configuration`` or local folder. Of Parquet folders and datasets it is the split train; of
            others, hidden files and folders are passed over.
        field: name of the text in JSON and datasets.
        on_bad_row: "error" stops at a row that holds no text, "skip" leaves it out and counts it.

    Raises:
        FileNotFoundError: there is no such file or folder, or it holds no text file.
        ValueError: a file is not UTF-8, a line is no JSON, or a row has no such field or no text in it.
    """
    if source == PYTHON_TOPICS:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]
    if source.startswith(BIBLE):
        from datamodules.samples.embedded import bible_text

        return [bible_text(source.removeprefix(BIBLE))]
    bad = BadRows(on_bad_row)
    texts, rows, null = [], 0, 0
    for where, row in located_rows(source, field):
        rows += 1
        try:
            text = row_text(row, field, where)
        except ValueError as error:
            bad.meet(str(error), error)
            continue
        null += not text
        if text.strip():
            texts.append(text)
    bad.report(source, rows)
    if null:
        rank_zero_warn(f"{source}: {null} of {rows} rows hold no text in {field!r} (null or empty) and are left out")
    return texts


def read_rows(source: str, field: str) -> list[dict[str, Any]]:
    """Return the rows of a file, folder or dataset, as `read_texts` does; each has `field`."""
    return [dict(checked_row(row, field, where)) for where, row in located_rows(source, field)]


def located_rows(source: str, field: str) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file, folder or dataset with words for where it is; a text file is one row.

    A line that is no JSON is yielded as the ValueError that says so: `checked_row` raises it.

    Args:
        source: as for `read_texts`, but for the embedded ones.
        field: where a text file's row has its text.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield from _rows_of_file(path, field)
    elif _is_saved_dataset(path):
        yield from _rows_of_dataset(source)
    elif path.is_dir():
        yield from _rows_of_folder(path, source, field)
    elif _looks_like_a_path(source):
        raise FileNotFoundError(f"source={source!r}: nothing there; searched {path.absolute().parent}{_there(path)}")
    else:
        yield from _rows_of_dataset(source)


def check_text_source(source: str, own: Iterable[str] = ()) -> None:
    """Refuse a name that is none of ours, nothing here, and no hub id, before the hub is asked.

    Args:
        source: see `read_texts`.
        own: further names that the datamodule knows.

    Raises:
        ValueError: it names what is nearest.
    """
    if not source.startswith(BIBLE) and not _looks_like_a_path(source):
        name = source if Path(source).expanduser().exists() else source.partition(":")[0]
        check_source(name, "source", (PYTHON_TOPICS, f"{BIBLE}kjv", *own))


def download(source: str) -> None:
    """Download a dataset of the hub, if the source is one; the datasets library keeps it."""
    path = Path(source).expanduser()
    embedded = source == PYTHON_TOPICS or source.startswith(BIBLE)
    if not embedded and not path.exists() and not _looks_like_a_path(source):
        _load_dataset(source)


def _rows_of_folder(path: Path, source: str, field: str) -> Iterator[tuple[str, Any]]:
    kinds = (*SUFFIXES, TABLE)
    files = sorted(file for file in path.rglob("*") if file.suffix in kinds and not _is_hidden(file, path))
    tables = [file for file in files if file.suffix == TABLE]
    if not files:
        raise FileNotFoundError(f"source={source!r}: no {', '.join(SUFFIXES)} or {TABLE} file below {path.absolute()}")
    if tables and len(tables) < len(files):
        other = next(file for file in files if file not in tables)
        raise ValueError(
            f"source={source!r} holds tables ({tables[0].name}) and texts ({other.name}): name a folder of one kind"
        )
    if tables:
        yield from _rows_of_dataset(source)
    for file in [] if tables else files:
        yield from _rows_of_file(file, field)


def _rows_of_file(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".txt":
        yield str(path), {field: read_text(path)}
    elif path.suffix == ".json":
        yield from _rows_of_json(path)
    elif path.suffix == TABLE:
        yield from _rows_of_table(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text_lines(path), start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = ValueError(f"{where} is no JSON: {error}")
            yield where, row
    else:
        raise ValueError(
            f"{path} is neither {' nor '.join((*SUFFIXES, '.json', TABLE))}: bring it into one of these forms"
        )


def _rows_of_json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; with one object in each line, name it .jsonl") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no list of rows but {shown(rows)}")
    for number, row in enumerate(rows):
        yield f"row {number} of {path}", row


def _rows_of_table(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"row {number} of {path}", without_nulls(row)
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no whole Parquet file (row {number}): {error}") from error


def _rows_of_dataset(source: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_load_dataset(source)):
        yield f"row {number} of {source}", without_nulls(row)


def _load_dataset(source: str) -> Any:
    from datasets import load_dataset, load_from_disk

    path = Path(source).expanduser()
    if _is_saved_dataset(path):
        saved = load_from_disk(str(path))
        if isinstance(saved, dict) and "train" not in saved:
            raise ValueError(f"source={source!r} has no split 'train', only: {', '.join(saved)}; name a split's folder")
        return saved["train"] if isinstance(saved, dict) else saved
    check_text_source(source)
    name, _, configuration = source.partition(":")
    try:
        return load_dataset(name, configuration or None, split="train")
    except Exception as error:  # the library raises errors of many kinds when it is offline or knows no such name
        if path.is_dir():
            raise ValueError(f"source={source!r}: the folder's split 'train' cannot be read: {error}") from error
        raise FileNotFoundError(
            f"source={source!r} is no file or folder here, and no dataset of this name could be loaded: {error}"
        ) from error


def _looks_like_a_path(source: str) -> bool:
    return Path(source).suffix in (*SUFFIXES, ".json", TABLE) or source.startswith((".", "~", "/"))


def _is_hidden(file: Path, folder: Path) -> bool:
    """Return whether a file is hidden, or in a hidden folder: copies that editors, notebooks and systems leave."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _there(path: Path) -> str:
    folder = path.absolute().parent
    names = sorted(file.name for file in folder.iterdir() if file.name[0] != ".")[:5] if folder.is_dir() else []
    return f" (it holds {', '.join(names)}, ...)" if names else " (which is empty or missing)"
