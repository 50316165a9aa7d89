"""The command line: overrides reach the recipe, bad values end in exit code 2 and one short message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from toys import ToyData, ToyModule, Widen

from pangu_modules import Recipe, Stage
from pangu_modules.engine.cli import main, parse
from pangu_modules.engine.messages import readable_types, short_message
from pangu_modules.engine.request import COMMANDS, Program

RECIPE = Recipe(
    module=ToyModule.Config(),
    data=ToyData.Config(batch_size=8),
    callbacks={"widen": Widen.Config(), "again": Widen.Config(width=20)},
    trainer={"max_epochs": 2, "accelerator": "cpu"},
)
STAGED = Recipe(
    stages={
        "first": Stage(module=ToyModule.Config(), data=ToyData.Config(), callbacks={"widen": Widen.Config()}),
        "second": Stage(module=ToyModule.Config(width=5), data=ToyData.Config(), start_from="first"),
    }
)
PROGRAM = Program(name="toy", call="python toy.py", title="A toy.")


def parsed(*words: str, recipe: Recipe = RECIPE) -> Any:
    request = parse(recipe, list(words), PROGRAM)
    assert request is not None
    return request


def test_overrides_reach_module_data_callbacks_and_trainer() -> None:
    words = ["--module.width", "3", "--module.optimizer.lr", "0.5", "--data.size=32", "--callbacks.widen.factor", "2"]
    request = parsed("fit", *words, "--trainer.max_epochs", "7", "--seed", "4", "--ckpt_path", "last")
    stage = request.recipe.stages[""]
    assert (stage.module.width, stage.module.optimizer.lr, stage.data.size) == (3, 0.5, 32)
    assert (stage.callbacks["widen"].factor, stage.callbacks["again"].factor) == (2.0, 1.0)
    assert (stage.trainer, stage.seed) == ({"max_epochs": 7, "accelerator": "cpu"}, 4)
    assert request.options["ckpt_path"] == "last"


def test_nothing_given_changes_nothing() -> None:
    assert parsed("fit").recipe.plain() == RECIPE.plain()
    assert parsed("fit", recipe=STAGED).recipe.plain() == STAGED.plain()


def test_stages_have_prefixes() -> None:
    request = parsed("fit", "--second.module.width", "9", "--first.callbacks.widen=null", recipe=STAGED)
    assert request.recipe.stages["second"].module.width == 9
    assert request.recipe.stages["first"].callbacks == {"widen": None}
    assert request.recipe.stages["first"].module.width == 8
    assert [stage.seed for stage in request.recipe.stages.values()] == [0, 0]
    seeded = parsed("fit", "--seed", "3", recipe=STAGED).recipe
    assert [stage.seed for stage in seeded.stages.values()] == [3, 3]


@pytest.mark.parametrize("removal", [["--callbacks.widen", "null"], ["--callbacks.widen=null"]])
def test_print_config_round_trips_exactly(
    removal: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--module.width", "3", "--callbacks.again.width", "30", *removal, "--trainer.precision", "bf16-mixed"]
    changed = parsed("fit", *words).recipe
    assert list(changed.stages[""].active_callbacks) == ["again"]
    assert parse(RECIPE, ["fit", "--print_config", *words], PROGRAM) is None
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == changed.plain()
    (tmp_path / "config.yaml").write_text(printed)
    again = parsed("fit", "--config", str(tmp_path / "config.yaml")).recipe
    assert again.plain() == changed.plain()


def test_a_partial_config_file_changes_only_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("callbacks: {again: {width: 31}}\nmodule: {width: 5}\n")
    stage = parsed("fit", "--config", str(tmp_path / "some.yaml"), "--module.width", "6").recipe.stages[""]
    assert stage.module.width == 6  # later words win
    assert (stage.callbacks["widen"], stage.callbacks["again"].width) == (Widen.Config(), 31)


BAD = {
    "unknown command 'fti'. Did you mean 'fit'?": ["fti"],
    "unknown option --module.widht. Did you mean '--module.width'?": ["fit", "--module.widht", "3"],
    "unknown option --trainer.max_epoch. Did you mean '--trainer.max_epochs'?": ["fit", "--trainer.max_epoch", "3"],
    "--module.width: Input should be greater than 0, got '-3'": ["fit", "--module.width", "-3"],
    "--module.optimizer.lr: Input should be greater than 0, got '0'": ["fit", "--module.optimizer.lr=0"],
    "--callbacks.widen.factor: Input should be greater than 0, got '0'": ["fit", "--callbacks.widen.factor", "0"],
    "'bf16-mixed', '32-true', '64-true', '64', '32', '16', 'bf16', null, got 'bf17'": [
        "fit",
        "--trainer.precision",
        "bf17",
    ],
    "trainer: You selected an invalid strategy name: `strategy='foo'`": ["fit", "--trainer.strategy", "foo"],
    "trainer: You selected an invalid accelerator name: `accelerator='foo'`": ["fit", "--trainer.accelerator", "foo"],
    "--config: cannot read nowhere.yaml": ["fit", "--config", "nowhere.yaml"],
    "--loggers: Expected a list, got 'abc'": ["fit", "--loggers", "abc"],
    "seed: Input should be greater than or equal to 0, got -1": ["fit", "--seed", "-1"],
    "--ckpt_path last: there is no run of": ["fit", "--ckpt_path", "last"],
    "--ckpt_path: no file 'gone.ckpt'": ["fit", "--ckpt_path", "gone.ckpt"],
    "--ckpt_path last: there is no run": ["test"],
}


@pytest.mark.parametrize(("message", "words"), list(BAD.items()))
def test_bad_values_end_with_code_2_and_a_short_message(
    message: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 2  # the message, and where to read more
    assert not list(tmp_path.glob("runs/*/*"))  # nothing is left of a run that never began


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("module: {widht: 3}", "unknown option --module.widht. Did you mean '--module.width'?"),
        ("modul: {width: 3}", "unknown option --modul.width. Did you mean '--module.width'?"),
        ("module: {width: -3}", "--module.width: Input should be greater than 0, got '-3'"),
        ("module: [", "is not valid YAML"),
    ],
)
def test_bad_config_files_are_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, ["fit", "--config", str(tmp_path / "bad.yaml")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_readable_types() -> None:
    assert readable_types("typing.Literal['a', 1], <class 'x.y.Name'>, <class 'NoneType'>") == "'a', 1, Name, null"


def test_a_message_of_the_parser_names_the_inner_key_and_the_bound() -> None:
    text = (
        'Parser key "callbacks.a.target":\n  Does not validate against any of the Union subtypes\n'
        '  Errors:\n    - Problem with given class_path:\n        Parser key "layers":\n'
        "          Subtypes: [typing.Annotated[int, Gt(gt=0)], <class 'NoneType'>]\n          Errors:\n"
        "            - 1 error\n                Input should be greater than [type=greater_than, input_value='0']\n"
        '        Parser key "another":\n          Given value: 0'
    )
    assert short_message(text, []) == "--callbacks.a.target.layers: Input should be greater than 0, got '0'"


# The recipe object.


def test_derive_is_validated_like_the_constructor() -> None:
    derived = RECIPE.derive(module={"width": 3}, callbacks={"again": None}, trainer={"max_epochs": 5}, seed=2)
    stage = derived.stages[""]
    assert (stage.module.width, list(stage.active_callbacks), stage.seed) == (3, ["widen"], 2)
    assert stage.trainer == {"max_epochs": 5, "accelerator": "cpu"}
    assert RECIPE.stages[""].module.width == 8
    with pytest.raises(ValidationError, match="greater than 0"):
        RECIPE.derive(module={"width": 0})
    with pytest.raises(ValueError, match=r"no callback 'widne'. Did you mean 'widen'"):
        RECIPE.derive(callbacks={"widne": {"width": 3}})
    with pytest.raises(ValueError, match=r"no stage 'secnd' to derive. Did you mean 'second'"):
        STAGED.derive(secnd={"seed": 3})
    assert STAGED.derive(second={"seed": 3}).stages["second"].seed == 3


def test_wrong_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match="start_from='later' names no earlier stage; earlier stages: none"):
        Recipe(stages={"a": Stage(module=ToyModule.Config(), data=ToyData.Config(), start_from="later")})
    with pytest.raises(ValueError, match="either `stages` or the fields"):
        Recipe()
    with pytest.raises(ValidationError, match="give callbacks by name"):
        Recipe(module=ToyModule.Config(), data=ToyData.Config(), trainer={"callbacks": []})
    with pytest.raises(ValueError, match=r"choose with \.stage"):
        STAGED.fit("nowhere")


def test_bare_help_lists_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/toy.py"])
    main(RECIPE, ["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python recipes/toy.py COMMAND [options]\n")
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")] == list(COMMANDS)
    with pytest.raises(SystemExit) as stopped:
        main(RECIPE, [])
    assert stopped.value.code == 2
    assert "no command given; commands: fit, validate" in capsys.readouterr().err


# Without heavy imports.


def heavy_imports(*words: str) -> set[str]:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "scalenet" in done.stdout.lower()
    names = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    return names & {"torch", "lightning", "timm", "peft", "torchmetrics", "jsonargparse"}


def test_bare_help_and_list_import_nothing_heavy() -> None:
    assert heavy_imports("-m", "pangu_modules.engine.console", "scalenet_digits", "--help") == set()
    assert heavy_imports("-m", "pangu_modules.engine.catalogue") == set()


def test_help_of_fit_does_not_import_the_models() -> None:
    assert not heavy_imports("recipes/scalenet_digits.py", "fit", "--help") & {"timm", "peft"}
