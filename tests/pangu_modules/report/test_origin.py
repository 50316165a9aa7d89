"""Where a run's numbers come from: commit, machine, and secrets that never reach a file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pangu_modules.common.masking import mask_command, mask_secrets
from pangu_modules.report.origin import collect_machine, commit_of


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_commit_is_that_of_the_repository_and_says_what_changed(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert commit_of(tmp_path / "inner") == ""
    git(tmp_path, "init")
    assert commit_of(tmp_path) == ""
    file = tmp_path / "recipe.py"
    file.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag")  # the hash is what is wanted, not the tag's name
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert commit_of(tmp_path / "inner") == head
    file.write_text("2")
    assert commit_of(tmp_path) == f"{head}-dirty"


def test_commit_without_git_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) == ""
    assert commit_of(tmp_path / "missing") == ""


def test_machine_names_what_the_numbers_were_made_on() -> None:
    machine = collect_machine()
    assert set(machine) <= {"processor", "cores", "memory", "platform"}
    assert {"processor", "cores", "platform"} <= set(machine)
    assert int(machine["cores"].split()[0]) >= 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["x.py", "fit", "--data.password", "a'b c", "--n", "1"], "x.py fit --data.password '***' --n 1"),
        (["--module.hf_token=x y", "--token", "t"], "'--module.hf_token=***' --token '***'"),
        (["--password", "--n", "1"], "--password --n 1"),
        (["--module.eos_token", "</s>", "--data.tokenizer", "x"], "--module.eos_token '</s>' --data.tokenizer x"),
        (["--g.api_key_variable", "KEY", "--g.max_new_tokens", "5"], "--g.api_key_variable KEY --g.max_new_tokens 5"),
        (
            ["--g", '{"base_url": "http://u:p@s@h/v1", "api_key": "a b"}'],
            '--g \'{"base_url": "http://***@h/v1", "api_key": ***}\'',
        ),
        (["--g.headers", "Bearer abcdefgh1234"], "--g.headers 'Bearer ***'"),
        (["--x", "hf_abcdefghijklmnop"], "--x '***'"),
        (["--data.source", "a@b/c", "--image", "user@example.org"], "--data.source a@b/c --image user@example.org"),
    ],
)
def test_secrets_of_a_command_are_masked(words: list[str], line: str) -> None:
    assert mask_command(words) == line


def test_secrets_of_a_configuration_are_masked_and_nothing_else() -> None:
    text = (
        "base_url: https://me:pw@host/v1\napi_key: abc\nnested:\n  password: 'a b'\n  token: null\n"
        "prompt: a token of text here\neos_token: </s>\npasswords:\n- kept\n"
    )
    assert mask_secrets(text) == (
        "base_url: https://***@host/v1\napi_key: ***\nnested:\n  password: ***\n  token: null\n"
        "prompt: a token of text here\neos_token: </s>\npasswords:\n- kept\n"
    )
