"""Evaluation: tasks of lm-evaluation-harness, found and read first, then run on any causal language model.

The harness gets the model as it is in memory (pruned, with adapters, a mixture ...) and its tokenizer. Nothing that a
hub holds is run: tasks that execute what a model writes, and metrics whose code would be fetched, are refused.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from pangu_modules.common.names import nearest
from pangu_modules.llm.evaluate.settings import EvaluationConfig
from pangu_modules.llm.models.messages import in_one_line

PACKAGES = ("lm_eval", "transformers", "torch")


class EvaluatedModule(Protocol):
    """What an evaluation needs of a module: a transformers model and its tokenizer, as `CausalLM` has them."""

    model: Any

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, or None."""


class Evaluation:
    """Tasks that are ready to run: their names are known and their data are read.

    Args:
        config: which.

    Raises:
        ValueError: the harness is not installed, a task is unknown or its data cannot be read, or it would run code
            of a hub.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        with _quiet_harness():
            self._manager = _manager(config)
            self._tasks = [task for name in _names(config, self._manager) for task in _loaded(name, self._manager)]

    def __call__(self, module: EvaluatedModule) -> dict[str, Any]:
        """Return the results of a module's model; see `run`."""
        return self.run(module.model, module.tokenizer)

    def run(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Return the results of a model, which is moved to the accelerator if there is one, as plain data.

        Args:
            model: a transformers causal language model.
            tokenizer: its transformers tokenizer.

        Returns:
            ``rows``, a dictionary for each task and metric (task, metric, value, stderr, num_fewshot, num_samples,
            of_samples), and what they were measured with.

        Raises:
            ValueError: there is no tokenizer.
        """
        if tokenizer is None:
            raise ValueError("evaluate: the model has no tokenizer, and tasks are text: give one in module.tokenizer")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        training = model.training
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        begun = time.perf_counter()
        with _quiet_harness():
            engine = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=self.config.batch_size)
        found = simple_evaluate(
            engine,
            tasks=self._tasks,
            num_fewshot=self.config.num_fewshot,
            limit=self.config.limit,
            task_manager=self._manager,  # otherwise it indexes its 14,000 tasks
            log_samples=False,
        )
        model.train(training)
        return {
            **self.config.plain(),
            "rows": rows_of(found),
            "seconds": time.perf_counter() - begun,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each task (or group) and metric of the harness' results."""
    rows = []
    for task, values in found["results"].items():
        counts = found["n-samples"].get(task, {})
        for key, value in values.items():
            metric, comma, part = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{part}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if part == "none" else f"{metric} ({part})",
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None,
                    "num_fewshot": found["n-shot"].get(task),
                    "num_samples": counts.get("effective"),
                    "of_samples": counts.get("original"),
                }
            )
    return rows


def _manager(config: EvaluationConfig) -> Any:
    """Return the harness' index of tasks: of the user's folder alone where it has all of them, which is much faster."""
    # Before its first import: metrics that the harness lacks are programs on a hub.
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"evaluate needs lm-evaluation-harness: pip install 'pangu-recipes[eval]' ({error})"
        ) from error

    folder = config.include_path
    if folder is not None:
        if not Path(folder).is_dir():
            raise ValueError(f"include_path={folder!r}: no folder at {Path(folder).absolute()}")
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(manager.match_tasks([name]) for name in config.tasks):
            return manager
    return TaskManager(include_path=folder)


def _names(config: EvaluationConfig, manager: Any) -> list[str]:
    """Return the names of the tasks that are asked for, each once, in the order given."""
    names: dict[str, None] = {}
    for given in config.tasks:
        matching = manager.match_tasks([given])
        if not matching:
            raise ValueError(
                f"tasks: {given!r} is no task of lm-evaluation-harness or of include_path={config.include_path!r}."
                f"{nearest(given, manager.all_tasks)}"
            )
        names |= dict.fromkeys(matching)
    return list(names)


def _loaded(name: str, manager: Any) -> list[Any]:
    """Return a group, or the tasks of a name, with their data."""
    try:
        found = manager.load([name])
    except Exception as error:  # of the task's own code, of the data set's reader, of the hub's client
        raise ValueError(
            f"tasks: {name!r} cannot be read ({in_one_line(error)}): its data must be reachable, on the hub or in the "
            "cache of datasets; tasks over files of your own are YAMLs in include_path"
        ) from error
    for task in found["tasks"].values():
        _refuse_code(task)
    groups = found["groups"]
    return [groups[name]] if name in groups else list(found["tasks"].values())


def _refuse_code(task: Any) -> None:
    """Refuse a task that runs what a model writes, or a metric whose code lies on a hub."""
    from lm_eval.api.registry import metric_registry

    name = task.config.task
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"tasks: {name!r} runs programs that the model writes, which is not done here: leave it out")
    for entry in task.config.metric_list or ():
        metric = entry["metric"]
        if not callable(metric) and (entry.get("hf_evaluate") or metric not in metric_registry):
            raise ValueError(
                f"tasks: the metric {metric!r} of {name!r} is a program on a hub, and none is run: leave the task out"
            )


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Hide the harness' remarks while it is prepared: what matters of them is an error here, or in the results."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
