"""ShardStore: an append-only folder of Parquet shards with a manifest, which goes on wherever a process was killed.

``data/shard-00000.parquet`` and so on hold rows alone, so that any Parquet reader takes ``data/`` as it is;
``manifest.json`` says what made them (`identity`), and of each shard its rows, SHA-256 and keys. A shard takes its name
before the manifest lists it. Times are in the manifest only: equal work leaves equal shards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from filelock import FileLock, Timeout

from pangu_modules.common.files import atomic_file, write_atomically
from pangu_modules.llm.generation.store.shard_files import (
    FORMAT,
    MANIFEST,
    Shard,
    check_store,
    described,
    digest,
    read_manifest,
    sha256,
    shard_files,
    shards_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

IDENTITY = b"pangu.identity"  # in a shard's schema: of which store one is that its manifest does not list yet


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
        self._held: dict[str, set[int]] = {}
        self._answered: dict[str, set[str]] = {}
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
        return self._held.get(key, set())

    def prompts_of(self, key: str) -> set[str]:
        """Return the hashes of the prompts that the store's rows of a key answer, see `prompt_hash`: one, or none."""
        return self._answered.get(key, set())

    def append(self, table: pa.Table, number: int, statistics: Mapping[str, float]) -> Shard:
        """Write a shard, and list it; once this returns, its rows are kept whatever happens.

        Args:
            table: its rows, with the columns ``key`` and ``sample``.
            number: of the part of the work that it is of, from 0; a second shard of a part gets a name of its own.
            statistics: what the manifest says of it, beside the file's size, ``bytes``.
        """
        import pyarrow.parquet as pq

        name, again = f"shard-{number:05d}.parquet", 0
        while (self.folder / "data" / name).exists():
            again += 1
            name = f"shard-{number:05d}-{again}.parquet"
        marked = table.replace_schema_metadata({IDENTITY: digest(self.identity)})
        with atomic_file(self.folder / "data" / name) as temporary:
            pq.write_table(marked, temporary, compression="zstd")
            shard = described(temporary, table, {**statistics, "bytes": temporary.stat().st_size})
        self._take(shard)
        self._write_manifest()
        return shard

    def _take(self, shard: Shard) -> None:
        self.shards.append(shard)
        for key, samples in shard.keys.items():
            self._held.setdefault(key, set()).update(samples)
        for key, prompt in shard.prompts.items():
            self._answered.setdefault(key, set()).add(prompt)

    def _write_manifest(self) -> None:
        self._manifest["shards"] = [asdict(shard) for shard in sorted(self.shards, key=lambda shard: shard.name)]
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
        for name in sorted({*listed, *shard_files(self.folder)}):
            shard, reason = self._looked_at(name, listed.get(name))
            if shard is None:
                self._drop(name, reason)
            else:
                self._take(shard)
        self._write_manifest()

    def _looked_at(self, name: str, listed: Shard | None) -> tuple[Shard | None, str]:
        """Return a shard that is whole, or None and why it is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "data" / name
        if not path.is_file():
            return None, "its file is gone"
        if listed is not None:
            return (listed, "") if sha256(path) == listed.sha256 else (None, "it is not what the manifest lists")
        try:
            table = pq.read_table(path)
            ours = (table.schema.metadata or {}).get(IDENTITY) == digest(self.identity)
            return (described(path, table, {}), "") if ours else (None, "another store made it")
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


def _short(value: Any) -> str:
    return repr(value)[:60]
