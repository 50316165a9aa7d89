"""RolloutStore: what is written is there whatever happens, equal work leaves equal shards, and others can read it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pangu_modules import RolloutStore
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store import shards
from pangu_modules.llm.generation.store.rollouts import read_rollouts
from pangu_modules.llm.generation.store.shard_files import read_manifest, shards_of

IDENTITY = {"model": "abc", "template": "", "sampling": {"temperature": 1.0}, "seed": 0}
PROMPT = [{"role": "user", "content": "what is 3 + 4? ☃"}]


def rollout(key: str, sample: int = 0, **fields: Any) -> Rollout:
    given: dict[str, Any] = {
        "text": f"answer {key} {sample}",
        "finish_reason": "stop",
        "prompt_ids": (1, 2),
        "token_ids": (7, 8, 9),
        "policy_mask": (True, False, True),
        "logprobs": (-0.5, -1.5, -0.25),
        "sampled_logprobs": (-0.25, -1.0, 0.0),
        "seed": 2**63 + 5,  # seeds of single completions have 64 bits
        "model": "abc",
        "labels": {"task": "sum", "level": "1"},
        "rewards": {"answer": 1.0, "format": 0.5},
        "reasons": {"answer": "equal to 7", "format": ""},
    }
    return Rollout(key=key, sample=sample, **{**given, **fields})


def write(folder: Path, *keys: str, start: int = 0, identity: dict[str, Any] | None = None, **options: Any) -> None:
    with RolloutStore(folder, identity or IDENTITY, **options) as store:
        for number, key in enumerate(keys, start):
            store.add([rollout(key), rollout(key, 1)], {key: PROMPT}, number=number, seconds=0.5)


def hashes(folder: Path) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in shards_of(folder, read_manifest(folder, "rollouts"))}


def test_a_row_holds_all_of_a_rollout(tmp_path: Path) -> None:
    """Would fail if a field were left out, or an unknown log-probability came back as none at all."""
    bare = rollout("b", prompt_ids=(), token_ids=(), policy_mask=(), logprobs=None, sampled_logprobs=None)
    unjudged = replace(bare, key="c", rewards={}, reasons={}, labels={})
    written = [rollout("a"), rollout("a", 1), bare, unjudged]
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        store.add(written, dict.fromkeys("abc", PROMPT), number=0, seconds=1.0)
    assert list(read_rollouts(tmp_path / "s")) == written
    rows = pq.read_table(tmp_path / "s/data").to_pylist()
    assert [row["reward"] for row in rows] == [1.5, 1.5, 1.5, None]
    assert rows[0]["prompt"] == PROMPT


def test_halves_of_surrogate_pairs_do_not_lose_a_shard(tmp_path: Path) -> None:
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        store.add([rollout("a", text="x\ud800y")], {"a": PROMPT}, number=0, seconds=1.0)
    assert [one.text for one in read_rollouts(tmp_path / "s")] == ["x?y"]


def test_a_message_that_would_lose_a_field_is_refused(tmp_path: Path) -> None:
    with RolloutStore(tmp_path / "s", IDENTITY) as store, pytest.raises(ValueError, match="'a': a message holds"):
        store.add([rollout("a")], {"a": [{**PROMPT[0], "tool_calls": "x"}]}, number=0, seconds=1.0)


def test_equal_work_leaves_equal_shards_whatever_time_it_took(tmp_path: Path) -> None:
    for name, seconds in (("one", 1.0), ("two", 9.0)):
        with RolloutStore(tmp_path / name, IDENTITY) as store:
            store.add([rollout("a")], {"a": PROMPT}, number=0, seconds=seconds)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_a_store_goes_on_after_its_last_shard(tmp_path: Path) -> None:
    write(tmp_path / "whole", "a", "b", "c")
    write(tmp_path / "s", "a")
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        assert store.samples_of("a") == {0, 1}
        assert store.samples_of("b") == set()
    write(tmp_path / "s", "b", "c", start=1)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "whole")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before the shard", "before the manifest", "after the manifest"])
def test_killed_around_a_shard(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would fail if a shard that the manifest does not list yet were written again under another name, or were lost."""
    write(tmp_path / "whole", "a", "b")
    write(tmp_path / "s", "a")

    def stop(*_: Any, **__: Any) -> None:
        raise Killed

    def killed_while_it_writes() -> None:
        with RolloutStore(tmp_path / "s", IDENTITY) as store, monkeypatch.context() as patch:
            if moment == "before the shard":
                patch.setattr(pq, "write_table", stop)
            elif moment == "before the manifest":
                patch.setattr(shards, "write_atomically", stop)
            store.add([rollout("b"), rollout("b", 1)], {"b": PROMPT}, number=1, seconds=0.5)
            stop()

    with pytest.raises(Killed):
        killed_while_it_writes()
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        kept = store.samples_of("b")
    assert kept == (set() if moment == "before the shard" else {0, 1})
    if not kept:
        write(tmp_path / "s", "b", start=1)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "whole")
    assert not (tmp_path / "s/dropped").exists()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_torn_last_shard_is_named_and_set_aside(
    share: float, listed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "s", "a", "b")
    before = hashes(tmp_path / "s")
    torn = tmp_path / "s/data/shard-00001.parquet"
    content = torn.read_bytes()
    torn.write_bytes(content[: int(share * len(content))])
    if not listed:
        path = tmp_path / "s/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["shards"].pop()
        path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="run the stage") if listed else pytest.raises(StopIteration):
        rows = read_rollouts(tmp_path / "s")
        while True:
            next(rows)
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        assert store.samples_of("b") == set()
        assert store.samples_of("a") == {0, 1}
    assert "shard-00001.parquet" in capsys.readouterr().err
    assert (tmp_path / "s/dropped/shard-00001.parquet").read_bytes() == content[: int(share * len(content))]
    write(tmp_path / "s", "b", start=1)
    assert hashes(tmp_path / "s") == before


def test_a_shard_that_is_gone_or_changed_inside_is_made_again(tmp_path: Path) -> None:
    """A flipped byte leaves a file that Parquet may still read: only the hash tells."""
    write(tmp_path / "s", "a", "b", "c")
    before = hashes(tmp_path / "s")
    changed = bytearray((tmp_path / "s/data/shard-00000.parquet").read_bytes())
    changed[10] ^= 1
    (tmp_path / "s/data/shard-00000.parquet").write_bytes(changed)
    (tmp_path / "s/data/shard-00002.parquet").unlink()
    with RolloutStore(tmp_path / "s", IDENTITY) as store:
        assert [bool(store.samples_of(key)) for key in "abc"] == [False, True, False]
    write(tmp_path / "s", "a")
    write(tmp_path / "s", "c", start=2)
    assert hashes(tmp_path / "s") == before


def test_a_second_shard_of_a_part_has_a_name_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "s", "a")
    write(tmp_path / "s", "b")
    assert sorted(hashes(tmp_path / "s")) == ["shard-00000-1.parquet", "shard-00000.parquet"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "xyz"}, "another model 'abc' there, 'xyz' here"),
        ({"template": "t"}, "another template"),
        ({"sampling": {"temperature": 0.5}}, "another sampling {'temperature': 1.0} there"),
        ({"seed": 3}, "another seed 0 there, 3 here"),
    ],
)
def test_another_models_store_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    write(tmp_path / "s", "a")
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="made with") as refused:
        write(tmp_path / "s", "b", identity={**IDENTITY, **change})
    assert named in str(refused.value)
    assert "allow_other=True" in str(refused.value)
    assert {path: path.read_bytes() for path in before} == before
    write(tmp_path / "s", "b", start=1, identity={**IDENTITY, **change}, allow_other=True)
    assert len(list(read_rollouts(tmp_path / "s"))) == 4


def test_a_folder_that_is_no_store_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("x")
    with pytest.raises(ValueError, match=r"holds 'cat\.png' and no manifest\.json"):
        write(tmp_path / "photos", "a")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]
    with pytest.raises(ValueError, match="is a file"):
        write(tmp_path / "photos/cat.png", "a")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 9}', '{"format": 1, "kind": "scores", "identity": {}, "facts": []}']
)
def test_a_manifest_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="is no store of rollouts"):
        write(tmp_path, "a")


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "s", "a")
    path = tmp_path / "s/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = "../../other.parquet"
    path.write_text(json.dumps(manifest))
    for act in (lambda: write(tmp_path / "s", "b"), lambda: list(read_rollouts(tmp_path / "s"))):
        with pytest.raises(ValueError, match=r"'../../other.parquet', which is no shard's name"):
            act()


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(ValueError, match="being written by another process")
    with RolloutStore(tmp_path / "s", IDENTITY), refused:
        write(tmp_path / "s", "a")
    write(tmp_path / "s", "a")


READERS = {
    "datasets": "from datasets import load_dataset; rows = load_dataset('parquet', data_dir='data', split='train')",
    "pandas": "import pandas; rows = pandas.read_parquet('data').to_dict('records')",
}
WITHOUT_US = """
import sys
class Never:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pangu_modules", "callbacks", "datamodules", "recipes"):
            raise ImportError(name + " is not to be imported here")
sys.meta_path.insert(0, Never())
{read}
row = rows[0]
print(len(rows), row["text"], row["prompt"][0]["content"], [round(float(one), 2) for one in row["logprobs"]])
"""


@pytest.mark.parametrize("reader", READERS)
def test_read_without_our_package(reader: str, tmp_path: Path) -> None:
    write(tmp_path / "s", "a", "b")
    (tmp_path / "s/data/.shard-00009.parquet-x").mkdir()  # what a kill may leave behind
    shutil.copy(tmp_path / "s/data/shard-00000.parquet", tmp_path / "s/data/.shard-00009.parquet-x/shard.parquet")
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US.format(read=READERS[reader])],
        cwd=tmp_path / "s",
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout == "4 answer a 0 what is 3 + 4? ☃ [-0.5, -1.5, -0.25]\n", done.stderr
