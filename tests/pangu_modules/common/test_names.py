"""Names from files stay in their folder, and misspelt ones are not asked of a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_modules.common.files import check_new, safe_name
from pangu_modules.common.names import check_source


@pytest.mark.parametrize("name", ["vocab.json", "chat_templates/tools.jinja", "a b.txt", "ü.json", ".hidden"])
def test_a_name_is_taken(name: str) -> None:
    assert safe_name(name, "x") == name


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../x", "a//b", "", ".", "..", "a\\b", "C:x", "a\0b", "a\nb", "x" * 300, " x", "a/", "a*"],
)
def test_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the file holds a file named"):
        safe_name(name, "the file")


def test_names_that_a_hub_may_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("smollm2", "mine", str(tmp_path), "Qwen/Qwen2.5-0.5B"):
        check_source(name, "model", ("smollm2",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm", "Did you mean 'smollm2'"),
        ("gpt2", "owner/name"),
        ("a/b/c", "nothing at"),
        ("./x/y", "nothing at"),
        ("~/nix", "nothing at"),
        ("https://x", "nothing at"),
    ],
)
def test_other_names_are_refused(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        check_source(name, "model", ("smollm2",))


def test_only_new_places_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check_new(tmp_path / "empty", "--output") == tmp_path / "empty"
    assert check_new(tmp_path / "new" / "deep", "--output")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "dangling", "link", "."):
        with pytest.raises(FileExistsError, match=r"--output: .* nothing is overwritten"):
            check_new(tmp_path / name, "--output")
