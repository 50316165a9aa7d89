"""ShardStore: an append-only folder of Parquet shards with a manifest, which goes on wherever a process was killed.

``data/shard-00000.parquet`` and so on hold rows alone, so that any Parquet reader takes ``data/`` as it is;
``manifest.json`` says what made them (`identity`), and of each shard its rows, SHA-256 and keys. A shard takes its name
before the manifest lists it. Times are in the manifest only: equal work leaves equal shards.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from filelock import FileLock, Timeout

from pangu_modules.common.files import atomic_file, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
SHARD = re.compile(r"shard-\d{5,}(-\d+)?\.parquet")
IDENTITY = (
    b"pangu.identity"  # in each shard's schema: of which store it is, for one that its manifest does not list yet
)
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One shard, as the manifest lists it.

    Attributes:
        name: of its file in ``data/``.
        rows: how many it holds.
        sha256: of the file.
        keys: key -> the sample numbers that the shard holds of it.
        statistics: seconds and the like; of a shard whose writer was killed before it listed the shard there are none.
    """

    name: str
    rows: int
    sha256: str
    keys: Mapping[str, Sequence[int]]
    statistics: Mapping[str, float]


class ShardStore:
    """A store that this process writes, as a context: ``with ShardStore(folder, identity) as store``.

    A shard that is torn, or is not the one that the manifest lists, is named and moved to ``dropped/``; its rows are
    missing then, and are made again. Nothing is deleted.

    Args:
        folder: the store's; made if it is not there.
        identity: what rows depend on, by name, e.g. the hash of the model; a store of another is refused.
        allow_other: go on with a store of another identity.
        facts: what the manifest says beside it, e.g. versions; plain data.

    Raises:
        ValueError: on entering, if the folder holds something else than such a store, a store of another identity, or
            one that another process writes.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        *,
        allow_other: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.identity = dict(identity)
        self.facts = dict(facts or {})
        self.allow_other = allow_other
        self.shards: list[Shard] = []
        self._manifest: dict[str, Any] = {}
        self._lock = FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> Self:
        check_store(self.folder, self.kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"{self.folder} is being written by another process: wait until it has ended") from None
        try:
            self._take_over()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def samples_of(self, key: str) -> set[int]:
        """Return the sample numbers that the store holds of a key."""
        return {sample for shard in self.shards for sample in shard.keys.get(key, ())}

    def append(self, table: pa.Table, number: int, statistics: Mapping[str, float]) -> Shard:
        """Write a shard, and list it; once this returns, its rows are kept whatever happens.

        Args:
            table: its rows, with the columns ``key`` and ``sample``.
            number: of the part of the work that it is of, from 0; a second shard of a part gets a name of its own.
            statistics: what the manifest says of it.
        """
        import pyarrow.parquet as pq

        name, again = f"shard-{number:05d}.parquet", 0
        while (self.folder / "data" / name).exists():
            again += 1
            name = f"shard-{number:05d}-{again}.parquet"
        marked = table.replace_schema_metadata({IDENTITY: _digest(self.identity)})
        with atomic_file(self.folder / "data" / name) as temporary:
            pq.write_table(marked, temporary, compression="zstd")
            shard = _described(temporary, table, statistics)
        self._list(shard)
        return shard

    def _list(self, shard: Shard) -> None:
        self.shards.append(shard)
        self.shards.sort(key=lambda listed: listed.name)
        self._write_manifest()

    def _write_manifest(self) -> None:
        self._manifest["shards"] = [asdict(shard) for shard in self.shards]
        write_atomically(self.folder / MANIFEST, json.dumps(self._manifest, indent=1, ensure_ascii=False) + "\n")

    def _take_over(self) -> None:
        """Take the shards that are whole, and set the others aside."""
        begun = (self.folder / MANIFEST).is_file()
        self._manifest = read_manifest(self.folder, self.kind) if begun else {}
        if not begun:
            self._manifest = {"format": FORMAT, "kind": self.kind, "identity": self.identity, "facts": [self.facts]}
            self._write_manifest()
            return
        self._check_identity()
        if self.facts not in self._manifest["facts"]:
            self._manifest["facts"].append(self.facts)
        listed = {shard.name: shard for shard in shards_of(self.folder, self._manifest)}
        for name in sorted({*listed, *_files(self.folder)}):
            shard, reason = self._looked_at(name, listed.get(name))
            if shard is None:
                self._drop(name, reason)
            else:
                self.shards.append(shard)
        self._write_manifest()

    def _looked_at(self, name: str, listed: Shard | None) -> tuple[Shard | None, str]:
        """Return a shard that is whole, or None and why it is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "data" / name
        if not path.is_file():
            return None, "its file is gone"
        if listed is not None:
            return (listed, "") if _sha256(path) == listed.sha256 else (None, "it is not what the manifest lists")
        try:
            table = pq.read_table(path)
            ours = (table.schema.metadata or {}).get(IDENTITY) == _digest(self.identity)
            return (_described(path, table, {}), "") if ours else (None, "another store made it")
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            return None, f"it is torn: {str(error).splitlines()[0]}"

    def _drop(self, name: str, reason: str) -> None:
        path, aside = self.folder / "data" / name, self.folder / "dropped" / name
        if not path.exists():
            print(f"{path}: {reason}; its rows are made again", file=sys.stderr)
            return
        aside.parent.mkdir(exist_ok=True)
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{name}.{number}")
        path.rename(aside)
        print(f"{path}: {reason}; moved to {aside}, and its rows are made again", file=sys.stderr)

    def _check_identity(self) -> None:
        before = self._manifest["identity"]
        names = dict.fromkeys([*before, *self.identity])
        differing = [
            f"{name} {_short(before.get(name))} there, {_short(self.identity.get(name))} here"
            for name in names
            if before.get(name) != self.identity.get(name)
        ]
        if differing and not self.allow_other:
            raise ValueError(
                f"{self.folder} was made with another {', another '.join(differing)}: take another folder, or go on in "
                "it with allow_other=True"
            )


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
        if not path.is_file() or _sha256(path) != shard.sha256:
            raise ValueError(
                f"{path} is not what {MANIFEST} lists: run the stage that made it again, it is mended then"
            )
        yield shard, pq.read_table(path, columns=None if columns is None else list(columns))


def _described(path: Path, table: pa.Table, statistics: Mapping[str, float]) -> Shard:
    """Return the shard that a file is, under the file's name."""
    keys: dict[str, list[int]] = {}
    for key, sample in zip(table["key"].to_pylist(), table["sample"].to_pylist(), strict=True):
        keys.setdefault(key, []).append(sample)
    return Shard(path.name, table.num_rows, _sha256(path), keys, dict(statistics))


def _files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "data").glob("*") if SHARD.fullmatch(path.name)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(identity: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest().encode()


def _short(value: Any) -> str:
    return repr(value)[:60]
