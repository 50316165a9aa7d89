"""What a store of shards is on disk, and reading it: the manifest's entries, the shards it lists, their rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
SHARD = re.compile(r"shard-\d{5,}(-\d+)?\.parquet")
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One shard, as the manifest lists it.

    Attributes:
        name: of its file in ``data/``.
        rows: how many it holds.
        sha256: of the file.
        keys: key -> the sample numbers that the shard holds of it.
        prompts: key -> hash of the prompt that is answered, where rows have one.
        statistics: seconds and the like; of a shard whose writer was killed before it listed the shard there are none.
    """

    name: str
    rows: int
    sha256: str
    keys: Mapping[str, Sequence[int]]
    prompts: Mapping[str, str]
    statistics: Mapping[str, float]


def check_store(folder: str | Path, kind: str) -> None:
    """Refuse a folder that holds something, but no store of this kind.

    Raises:
        ValueError: it is a file, or has no manifest, or one of something else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder of {kind}: name another place")
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        held = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        if held:
            raise ValueError(f"{folder} is no store of {kind}: it holds {held[0]!r} and no {MANIFEST}; name another")


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Return the manifest of a store.

    Raises:
        ValueError: there is none, it is damaged, or it is of something else than `kind`.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no store of {kind}: {path.name} cannot be read ({error})") from error
    known = isinstance(manifest, dict) and manifest.get("kind") == kind and manifest.get("format") == FORMAT
    parts = known and isinstance(manifest.get("identity"), dict) and isinstance(manifest.get("facts"), list)
    if not parts or not isinstance(manifest.get("shards"), list):
        raise ValueError(f"{folder} is no store of {kind}: {path.name} is of something else, or of another version")
    return dict(manifest)


def shards_of(folder: str | Path, manifest: Mapping[str, Any]) -> list[Shard]:
    """Return the shards that a manifest lists, in the order of their names.

    Raises:
        ValueError: an entry is damaged; a name is no shard's, and might lead out of the folder.
    """
    try:
        shards = [Shard(**entry) for entry in manifest["shards"]]
        wrong = [shard.name for shard in shards if not SHARD.fullmatch(shard.name)]
    except TypeError as error:
        raise ValueError(f"{folder}: {MANIFEST} is damaged ({error})") from error
    if wrong:
        raise ValueError(f"{folder}: {MANIFEST} lists {wrong[0][:80]!r}, which is no shard's name")
    return sorted(shards, key=lambda shard: shard.name)


def read_tables(
    folder: str | Path, kind: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[Shard, pa.Table]]:
    """Yield each listed shard of a store with its rows, one in memory at a time.

    Args:
        folder: the store's.
        kind: what it must hold.
        columns: those to read; None: all.

    Raises:
        ValueError: it is no such store, or a shard is not the one that the manifest lists.
    """
    import pyarrow.parquet as pq

    for shard in shards_of(folder, read_manifest(folder, kind)):
        path = Path(folder) / "data" / shard.name
        if not path.is_file() or sha256(path) != shard.sha256:
            raise ValueError(
                f"{path} is not what {MANIFEST} lists: run the stage that made it again, it is mended then"
            )
        yield shard, pq.read_table(path, columns=None if columns is None else list(columns))


def prompt_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the first characters of a conversation's hash: enough to tell another prompt under the same key."""
    plain = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def described(path: Path, table: pa.Table, statistics: Mapping[str, float]) -> Shard:
    """Return the shard that a file is, under the file's name."""
    keys: dict[str, list[int]] = {}
    for key, sample in zip(table["key"].to_pylist(), table["sample"].to_pylist(), strict=True):
        keys.setdefault(key, []).append(sample)
    prompts: dict[str, str] = {}
    if "prompt" in table.column_names:
        asked = zip(table["key"].to_pylist(), table["prompt"].to_pylist(), strict=True)
        prompts = {key: prompt_hash(prompt) for key, prompt in asked}
    return Shard(path.name, table.num_rows, sha256(path), keys, prompts, dict(statistics))


def shard_files(folder: Path) -> list[str]:
    """Return the names of the shards that lie in a store, listed or not."""
    return [path.name for path in (folder / "data").glob("*") if SHARD.fullmatch(path.name)]


def sha256(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(identity: Mapping[str, Any]) -> bytes:
    """Return the hash of an identity, by which a shard says of which store it is."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest().encode()
