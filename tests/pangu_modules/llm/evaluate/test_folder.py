"""``python -m pangu_modules.llm.evaluate FOLDER``: an exported model has the scores of the module it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from local_tasks import PICK, questions, slow_scores, write_task
from pangu_folder import pangu_folder
from tiny_llm import tiny_module, word_tokenizer

from pangu_modules.llm.evaluate.__main__ import main


def test_an_exported_folder_is_evaluated_and_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny_module(data_tokenizer=word_tokenizer(tmp_path / "words")).eval()
    module.export(tmp_path / "model")
    tasks = write_task(tmp_path / "tasks", PICK, questions())
    words = [str(tmp_path / "model"), "--tasks", "pick", "--include_path", str(tasks)]
    main([*words, "--output", str(tmp_path / "out.json")])
    results = json.loads((tmp_path / "out.json").read_text())
    wanted = slow_scores(module.model, module.tokenizer, questions())
    assert tuple(row["value"] for row in results["rows"]) == wanted
    assert results["model"] == str(tmp_path / "model")
    assert results["packages"]["lm_eval"]
    assert "acc_norm" in capsys.readouterr().out
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--output", str(tmp_path / "out.json")])
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_bytes() == before


def test_wrong_values_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pangu_folder(tmp_path / "code", tokenizer_file=False)
    tasks = write_task(tmp_path / "tasks", PICK, questions(2))
    own = ["--tasks", "pick", "--include_path", str(tasks)]
    for words, message in (
        ([str(tmp_path / "none"), *own], "error: tokenizer="),
        ([str(tmp_path / "code"), *own], "is Python code that comes with the model"),
        ([str(tmp_path / "code"), *own, "--limit", "0"], "error: limit: Input should be greater than 0, got 0"),
        ([str(tmp_path / "code")], "--tasks"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "code" / "run").exists()
