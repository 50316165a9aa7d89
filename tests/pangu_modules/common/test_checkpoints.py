"""A checkpoint that is not what was written is refused, whatever has happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pangu_modules.common.checkpoints import check_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(3000.0)}, "global_step": 3}, path)
    return path


def test_a_whole_one_passes(checkpoint: Path) -> None:
    check_checkpoint(checkpoint)
    check_checkpoint(checkpoint)


def test_flipped_bits_of_what_is_read_are_found(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]["weight"]
    found = unread = 0
    for place in range(7, len(whole), len(whole) // 60):
        checkpoint.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            check_checkpoint(checkpoint)
        except ValueError:
            found += 1
        else:  # padding between the entries
            assert torch.equal(torch.load(checkpoint, weights_only=True)["state_dict"]["weight"], expected)
            unread += 1
    assert found > 50
    assert unread < 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no whole checkpoint (it is empty)"),
        (b"not a checkpoint", "is no whole checkpoint (cut off, changed, or not written by fit"),
    ],
)
def test_others_are_named(content: bytes, message: str, checkpoint: Path) -> None:
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt") as caught:
        check_checkpoint(checkpoint)
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_one(share: float, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"last.ckpt is no whole checkpoint \(cut off"):
        check_checkpoint(checkpoint)
