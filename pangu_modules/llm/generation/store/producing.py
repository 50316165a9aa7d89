"""The work of a stage of kind "generate": tasks are asked, answers judged and kept, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pangu_modules.common.production import Produced, Production
from pangu_modules.common.tasks import Task
from pangu_modules.llm.generation.decoding.checks import vocabulary_of
from pangu_modules.llm.generation.records import IncompleteGenerationError, Rollout
from pangu_modules.llm.generation.store.identity import REFERENCES, model_identity, text_identity
from pangu_modules.llm.generation.store.kept_tokenizer import keep_tokenizer
from pangu_modules.llm.generation.store.pass_rates import Summary
from pangu_modules.llm.generation.store.references import References
from pangu_modules.llm.generation.store.rollouts import KIND, RolloutStore
from pangu_modules.llm.generation.store.shard_files import prompt_hash
from pangu_modules.report.run_report import collect_versions

PACKAGES = ("pangu-recipes", "torch", "transformers", "pyarrow")
NOT_OF_A_SAMPLE = (  # settings of generation that no completion depends on
    *("samples", "seed", "batch_size", "chunk_tokens", "base_url", "model"),
    *("timeout", "connect_timeout", "retries", "api_key_variable"),
)


@dataclass(frozen=True)
class Question:
    """Samples of one task that the store does not hold: `count` of them from number `first` on."""

    task: Task
    first: int
    count: int


def generate(production: Production) -> Produced:
    """Sample answers to the tasks of ``production.data`` into the store ``rollouts/``; what is there is not made again.

    Raises:
        ValueError: the data give no tasks, or the store is another model's; see `RolloutStore`.
        ConnectionError: the server cannot be asked.
    """
    stage, folder = production.stage, production.folder / KIND
    tasks = _tasks(production.data, stage.split, stage.num_tasks)
    engine = engine_of(production)
    identity = rollout_identity(engine, stage)
    references = References(production.data, engine.tokenizer) if stage.answers == "references" else None
    failures: dict[str, str] = {}
    store = RolloutStore(folder, identity, allow_other=stage.allow_other, facts=facts_of(engine))
    size = stage.tasks_per_shard
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    with store:
        keep_tokenizer(folder, engine.tokenizer)
        for number, chunk in enumerate(chunks):
            questions = missing_samples(store, chunk, stage.engine.samples)
            if questions:
                begun = time.perf_counter()
                rollouts, failed = _answers(engine, questions, stage.seed, references)
                seconds = time.perf_counter() - begun
                failures |= failed
                if rollouts:
                    judged = judge(rollouts, {task.key: task for task in chunk}, production.data)
                    store.add(judged, {task.key: task.messages for task in chunk}, number=number, seconds=seconds)
            production.progress(number + 1, len(chunks))
    summary = Summary.of_store(folder, {task.key for task in tasks})
    names = summary.add_tables(production.folder)
    return Produced(summary.metrics(), summary.whole.rollouts, summary.seconds, names, failures)


def missing_samples(store: RolloutStore, tasks: Sequence[Task], samples: int) -> list[Question]:
    """Return what is to be asked so that the store holds samples 0 to ``samples`` - 1 of each task, in its order.

    Raises:
        ValueError: the store's answers under a task's key are answers to something else.
    """
    questions: list[Question] = []
    for task in tasks:
        if store.prompts_of(task.key) - {prompt_hash(task.messages)}:
            raise ValueError(
                f"data: task {task.key!r} asks something else than what its answers in {store.folder} answer: they are "
                "of other data; take another folder, a new run, for these"
            )
        held = store.samples_of(task.key)
        for sample in (number for number in range(samples) if number not in held):
            last = questions[-1] if questions and questions[-1].task is task else None
            if last is not None and last.first + last.count == sample:
                questions[-1] = replace(last, count=last.count + 1)
            else:
                questions.append(Question(task, sample, 1))
    return questions


def judge(rollouts: Sequence[Rollout], tasks: Mapping[str, Task], data: Any) -> list[Rollout]:
    """Return the rollouts with what ``data.verify`` says of each; it says None where nothing can judge the answer."""
    judged = []
    for rollout in rollouts:
        score = data.verify(tasks[rollout.key], rollout.text)
        parts = {} if score is None else {score.component: score}
        rewards = {name: float(part.value) for name, part in parts.items()}
        judged.append(replace(rollout, rewards=rewards, reasons={name: part.reason for name, part in parts.items()}))
    return judged


def rollout_identity(engine: Any, stage: Any) -> dict[str, Any]:
    """Return what a stage's rollouts depend on: hashes of model, template and tokenizer, the settings, the seed."""
    if stage.answers == "references":
        return {"model": REFERENCES, **text_identity(engine.tokenizer), "sampling": {}, "seed": stage.seed}
    settings = {name: value for name, value in stage.engine.plain().items() if name not in NOT_OF_A_SAMPLE}
    known = {name: value for name, value in settings.items() if value is not None}
    return {**model_identity(engine, stage), "sampling": known, "seed": stage.seed}


def facts_of(engine: Any) -> dict[str, Any]:
    """Return what a store of rollouts says beside its identity: versions, and how many rows the model's head has."""
    rows = {} if engine.model is None else {"vocabulary": vocabulary_of(engine.model)}
    return {"versions": collect_versions(PACKAGES), **rows}


def engine_of(production: Production) -> Any:
    """Return a stage's engine; the module is not built where a server has the model."""
    config = production.stage.engine
    if config.base_url is not None:
        return config.build()
    module = production.module()
    return config.build(model=module.model, tokenizer=module.tokenizer)


def _tasks(data: Any, split: str, num_tasks: int | None) -> list[Task]:
    for name in ("tasks", "verify"):
        if not hasattr(data, name):
            raise ValueError(
                f"data: {type(data).__name__} has no {name}(...): a stage that generates asks data.tasks(split), and "
                "data.verify(task, text) judges the answers, as ReasoningTasks do"
            )
    tasks = list(islice(data.tasks(split), num_tasks))
    if not tasks:
        raise ValueError(f"data: {type(data).__name__} gives no task of split {split!r}")
    keys: set[str] = set()
    for task in tasks:
        if not task.key or task.key in keys:
            raise ValueError(f"data: task key {task.key!r} is {'there twice' if task.key else 'empty'}; keys name rows")
        keys.add(task.key)
    return tasks


def _answers(
    engine: Any, questions: Sequence[Question], seed: int, references: References | None
) -> tuple[list[Rollout], dict[str, str]]:
    """Ask, and return the rollouts in the order of tasks and samples, and why others are missing, by key and sample."""
    if references is not None:
        return [
            references.rollout(one.task, seed, one.first + more) for one in questions for more in range(one.count)
        ], {}
    found: dict[tuple[int, int], Rollout] = {}
    failures: dict[str, str] = {}
    spans = dict.fromkeys((question.first, question.count) for question in questions)
    for first, count in spans:  # one, unless an earlier process got some samples of a task and others not
        chosen = [place for place, one in enumerate(questions) if (one.first, one.count) == (first, count)]
        asked = [(place, first + number) for place in chosen for number in range(count)]
        prompts = [list(questions[place].task.messages) for place in chosen]
        try:
            rollouts: Sequence[Rollout | None] = engine.generate(prompts, seed=seed, samples=count, first_sample=first)
        except IncompleteGenerationError as error:
            rollouts = error.rollouts
            for number, reason in error.failures.items():
                place, sample = asked[number]
                failures[f"{questions[place].task.key}, sample {sample}"] = reason
        for (place, sample), rollout in zip(asked, rollouts, strict=True):
            if rollout is not None:
                task = questions[place].task
                found[place, sample] = replace(rollout, key=task.key, labels=dict(task.labels), sample=sample)
    return [found[position] for position in sorted(found)], failures
