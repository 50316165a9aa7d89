"""The completion script: bash itself is asked what it offers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from toys import ToyData, ToyModule, Widen

from pangu_modules import Recipe
from pangu_modules.engine.completion import configuration_options, main, script
from pangu_modules.engine.console import main as console
from pangu_modules.engine.request import Program

RECIPE = Recipe(module=ToyModule.Config(), data=ToyData.Config(), callbacks={"widen": Widen.Config()})
PROGRAM = Program(name="toy", call="pangu toy", title="A toy.")


def test_options_come_from_the_parser() -> None:
    options = configuration_options(RECIPE, PROGRAM)
    assert {"--module.width", "--data.size", "--callbacks.widen.width", "--trainer.max_epochs", "--seed"} <= set(
        options
    )
    assert not {"--ckpt_path", "--help", "-h"} & set(options)  # the commands' own


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_offers_names_commands_and_options(tmp_path: Path) -> None:
    recipes = {"toy": ["--module.width", "--module.dropout"], "toy_staged": ["--first.module.width"]}
    (tmp_path / "pangu").write_text(script("bash", recipes))
    asked = {
        "to": "toy toy_staged",
        "co": "compare completion",
        "toy f": "fit",
        "toy fit --mod": "--module.width --module.dropout",
        "toy_staged fit --": "--help --ckpt_path --first.module.width",
        "toy predict --p": "--prompt",
        "toy fit --p": "",
        "toy fti --": "",
        "toy fit --config conf": "",  # bash's own completion of files follows
        "completion ": "bash zsh",
    }
    lines = [f"source {tmp_path / 'pangu'}"]
    for words in asked:
        array = " ".join(f"'{word}'" for word in ["pangu", *words.split(" ")])
        lines.append(
            f'COMP_WORDS=({array}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _pangu; echo "${{COMPREPLY[*]}}"'
        )
    done = subprocess.run(["bash", "-c", "\n".join(lines)], text=True, capture_output=True, check=True)
    assert dict(zip(asked, done.stdout.split("\n"), strict=False)) == asked


def test_zsh_takes_the_same_function_through_bashcompinit() -> None:
    assert "bashcompinit && bashcompinit" in script("zsh", {})
    assert "bashcompinit" not in script("bash", {})


@pytest.mark.parametrize("words", [["fish"], [], ["bash", "zsh"]])
def test_another_shell_ends_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words, dict)
    assert stopped.value.code == 2
    assert "name one shell, bash or zsh" in capsys.readouterr().err


def test_the_console_knows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    console(["completion", "--help"])
    assert capsys.readouterr().out.startswith("usage: pangu completion bash|zsh")
