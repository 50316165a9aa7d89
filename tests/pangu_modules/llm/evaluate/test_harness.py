"""Tasks of lm-evaluation-harness: scores equal a slow loop over the model, and what cannot be run is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import pruned
from local_tasks import CONTINUE, PICK, questions, slow_continuation, slow_scores, write_task
from pydantic import ValidationError
from tiny_llm import tiny_module, word_tokenizer
from tiny_moge import moge_module
from torch import nn

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.evaluate.harness import Evaluation
from pangu_modules.llm.evaluate.settings import EvaluationConfig
from pangu_modules.llm.lora import LoRAConfig


def with_adapters(folder: Path) -> CausalLM:
    module = tiny_module(data_tokenizer=word_tokenizer(folder / "words"), lora=LoRAConfig(rank=2))
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.5)
    return module


def mixture(folder: Path) -> CausalLM:
    return CausalLM.Config(**moge_module().config.plain()).build(tokenizer=str(word_tokenizer(folder / "words")))


def unequal_layers(folder: Path) -> CausalLM:
    return pruned(folder, "slimllm")


MODULES: dict[str, Callable[[Path], CausalLM]] = {
    "plain": lambda folder: tiny_module(data_tokenizer=word_tokenizer(folder / "words")),
    "adapters": with_adapters,
    "mixture": mixture,
    "pruned": unequal_layers,
}


@pytest.mark.parametrize("kind", MODULES)
def test_accuracy_equals_a_slow_loop(tmp_path: Path, kind: str) -> None:
    # Catches: adapters or pruned shapes lost on the way, answers shifted by a token, the limit taken from the end.
    module = MODULES[kind](tmp_path).eval()
    rows = questions()
    wanted = slow_scores(module.model, module.tokenizer, rows[:9])
    module.train()
    folder = write_task(tmp_path / "tasks", PICK, rows)
    results = CausalLM.evaluation(tasks="pick", limit=9, include_path=str(folder), batch_size=5)(module)
    assert {row["metric"]: row["value"] for row in results["rows"]} == {"acc": wanted[0], "acc_norm": wanted[1]}
    assert {(row["task"], row["num_samples"], row["of_samples"]) for row in results["rows"]} == {("pick", 9, 12)}
    assert module.model.training


def test_texts_are_those_of_a_slow_greedy_loop(tmp_path: Path) -> None:
    module = MODULES["plain"](tmp_path).eval()
    rows = [{"question": row["question"]} for row in questions(8)]
    for place, row in enumerate(rows):
        written = slow_continuation(module.model, module.tokenizer, row["question"])
        row["answer"] = written if place % 4 else "w1 w2 w3"
    folder = write_task(tmp_path / "tasks", CONTINUE, rows)
    [row] = CausalLM.evaluation(tasks="continue", include_path=str(folder))(module)["rows"]
    assert (row["metric"], row["value"], row["num_fewshot"]) == ("exact_match", 0.75, 0)


def test_examples_before_a_question_are_counted_and_several_tasks_are_named(tmp_path: Path) -> None:
    module = MODULES["plain"](tmp_path)
    folder = write_task(tmp_path / "tasks", PICK.replace("task: pick", "task: pick_one"), questions())
    write_task(folder, PICK.replace("task: pick", "task: pick_two"), questions(5))
    evaluation = Evaluation(EvaluationConfig(tasks="pick_two, pick_*", num_fewshot=1, include_path=str(folder)))
    rows = evaluation(module)["rows"]
    assert [(row["task"], row["num_fewshot"], row["num_samples"]) for row in rows[::2]] == [
        ("pick_two", 1, 5),
        ("pick_one", 1, 12),
    ]


def test_what_cannot_be_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = write_task(tmp_path / "tasks", PICK, questions(2))
    (folder / "far.yaml").write_text(
        PICK.format(rows="x").replace("task: pick", "task: far").replace("json", "an/other")
    )
    (folder / "unsafe.yaml").write_text(
        (folder / "pick.yaml").read_text().replace("task: pick", "task: unsafe") + "unsafe_code: true\n"
    )
    (folder / "odd.yaml").write_text(
        (folder / "pick.yaml")
        .read_text()
        .replace("task: pick", "task: odd")
        .replace("metric: acc_norm", "metric: bertscore")
    )
    for task, message in (
        (
            "far",
            r"tasks: 'far' cannot be read \(.*an/other.*\): its data must be reachable, on the hub or in the cache",
        ),
        ("unsafe", "tasks: 'unsafe' runs programs that the model writes, which is not done here"),
        ("odd", "tasks: the metric 'bertscore' of 'odd' is a program on a hub, and none is run"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluation(EvaluationConfig(tasks=task, include_path=str(folder)))
    with pytest.raises(ValueError, match="include_path='nowhere': no folder at"):
        Evaluation(EvaluationConfig(tasks="pick", include_path="nowhere"))
    with pytest.raises(ValueError, match=r"the model has no tokenizer.* module\.tokenizer"):
        Evaluation(EvaluationConfig(tasks="pick", include_path=str(folder)))(tiny_module())


def test_an_unknown_task_gets_the_nearest_of_the_user_s_and_the_harness_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    class OwnAlone(tasks.TaskManager):  # the harness' index of 14,000 tasks takes 20 s
        def __init__(self, **given: Any) -> None:
            super().__init__(**{**given, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", OwnAlone)
    folder = write_task(tmp_path / "tasks", PICK, questions(2))
    with pytest.raises(ValueError, match=r"tasks: 'pikc' is no task of .* Did you mean 'pick'\?"):
        Evaluation(EvaluationConfig(tasks="pick,pikc", include_path=str(folder)))


def test_settings_are_checked_and_an_absent_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EvaluationConfig(tasks=" a, b,").tasks == ("a", "b")
    for wrong in ({"tasks": " ,"}, {"tasks": "a", "limit": 0}, {"tasks": "a", "num_fewshot": -1}):
        with pytest.raises(ValidationError):
            EvaluationConfig(**wrong)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ValueError, match=r"pip install 'pangu-recipes\[eval\]'"):
        Evaluation(EvaluationConfig(tasks="a"))


@pytest.mark.slow  # the harness' index of 14,000 tasks takes 20 s
def test_the_harness_own_tasks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'arc_esy' is no task .* Did you mean 'arc_easy'\?"):
        Evaluation(EvaluationConfig(tasks="arc_esy"))
    with pytest.raises(ValueError, match="tasks: 'arc_easy' cannot be read"):
        Evaluation(EvaluationConfig(tasks="arc_easy"))
