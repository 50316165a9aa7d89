"""The command `evaluate`: results beside the run and in its report, earlier ones kept, other models refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from local_tasks import PICK, questions, slow_scores, write_task
from tiny_llm import TINY_LLAMA, word_tokenizer
from tiny_text import TokenBatches
from toys import ToyData, ToyModule

from pangu_modules import CausalLM, Recipe, Stage
from pangu_modules.engine.cli import main
from pangu_modules.engine.evaluating import write_results
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.report.stored import stored_report

RUN = Path("runs/tiny/version_0")
TRAINER = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return a stage with a tokenizer, in a folder of its own with local tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    write_task(tmp_path / "tasks", PICK, questions())
    tokenizer = str(word_tokenizer(tmp_path / "words"))
    module = CausalLM.Config(architecture="llama", model_args={**TINY_LLAMA, "vocab_size": 128}, tokenizer=tokenizer)
    return Stage(module=module, data=TokenBatches.Config(), trainer=TRAINER)


def test_results_are_written_beside_the_run_and_join_its_report(own: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(stages={"": own})
    main(recipe, ["fit"])
    before = (RUN / "report.md").read_text()
    words = ["evaluate", "--tasks", "pick", "--include_path", "tasks"]
    main(recipe, [*words, "--limit", "7"])
    main(recipe, [*words, "--ckpt_path", str(RUN / "checkpoints/last.ckpt")])
    assert f"evaluation  {RUN}/evaluations/001.json" in capsys.readouterr().out
    module = CausalLM.load_from_checkpoint(RUN / "checkpoints/last.ckpt", weights_only=True).eval()
    first, second = (json.loads((RUN / f"evaluations/00{n}.json").read_text()) for n in (0, 1))
    for results, count in ((first, 7), (second, 12)):
        wanted = slow_scores(module.model, module.tokenizer, questions()[:count])
        assert tuple(row["value"] for row in results["rows"]) == wanted
    assert first["checkpoint"] == str(RUN / "checkpoints/last.ckpt")
    assert (first["limit"], second["limit"], first["global_step"]) == (7, None, 1)
    after = (RUN / "report.md").read_text()
    lines = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []  # nothing of it is lost
    assert sum(line.startswith("| pick | acc |") for line in lines) == 2
    assert lines.count("## Tasks, last.ckpt of step 1") == 2
    assert (RUN / "report.html").read_text().count("Tasks, last.ckpt of step 1") >= 2
    main(recipe, ["fit", "--ckpt_path", "last", "--trainer.max_steps", "2"])  # writes the report again, with both
    assert (RUN / "report.md").read_text().count("| pick | acc |") == 2


def test_a_stage_s_results_join_the_report_of_the_pipeline(own: Stage) -> None:
    recipe = Recipe(stages={"one": own, "two": own.derive(start_from="one")})
    main(recipe, ["fit"])
    chosen = ["--stage", "one", "--limit", "2", "--output", "mine.json"]
    main(recipe, ["evaluate", "--tasks", "pick", "--include_path", "tasks", *chosen])
    assert json.loads(Path("mine.json").read_text())["limit"] == 2
    assert "one: Tasks, last.ckpt of step 1" in [table.title for table in stored_report(RUN).tables]


def test_results_of_a_checkpoint_without_a_run_are_kept_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "task": "a",
        "metric": "acc",
        "value": 0.5,
        "stderr": None,
        "num_fewshot": 0,
        "num_samples": 2,
        "of_samples": 2,
    }
    results = {"checkpoint": "x.ckpt", "global_step": 3, "rows": [row], "seconds": 1.0}
    write_results(results, tmp_path / "out.json", tmp_path)
    assert json.loads((tmp_path / "out.json").read_text()) == results
    assert "has no report yet that the table could join" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_bad_values_end_with_one_sentence_before_the_model_is_built(
    own: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, toy = Recipe(stages={"": own}), Recipe(module=ToyModule.Config(), data=ToyData.Config(), trainer=TRAINER)
    main(recipe, ["fit"])
    main(toy, ["fit", "--trainer.max_steps", "1"])
    Path("taken.json").write_text("mine")
    known = ["--tasks", "pick", "--include_path", "tasks", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")]
    capsys.readouterr()
    for chosen, words, message in (
        (toy, ["--tasks", "pick"], "evaluate: ToyModule is no language model"),
        (recipe, known[2:], "--tasks: name what to evaluate on"),
        (recipe, [*known, "--limit", "0"], "evaluate.limit: Input should be greater than 0, got 0"),
        (recipe, [*known, "--limit", "many"], "--limit"),
        (recipe, [*known, "--output", "taken.json"], "--output: taken.json is a file, and nothing is overwritten"),
        (recipe, [*known, "--include_path", "nowhere"], "include_path='nowhere': no folder at"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(chosen, ["evaluate", *words])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert Path("taken.json").read_text() == "mine"
    assert not (RUN / "evaluations").exists()
