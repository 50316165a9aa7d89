"""The race with TRL's DistillationTrainer: the same models, prompts and steps; its teacher stays in memory."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.methods.posttrain.speed_setting import LR, Setting, cached, data_of, student_module
from benchmarks.methods.pruning.speed import resident
from benchmarks.races.race import Contest, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pangu_modules.llm.generation.records import Rollout

TIME_TARGET, MEMORY_TARGET = 1 / 0.6, 1 / 0.7
VARIABLE = "PANGU_TRL"
"""Environment variable: a folder with TRL, where it is not installed (pip install --target FOLDER --no-deps trl)."""


def has_trl() -> bool:
    """Whether TRL can be imported, from the folder that the variable names too."""
    folder = os.environ.get(VARIABLE)
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    return importlib.util.find_spec("trl") is not None


def trl_contest(setting: Setting, rollouts: Sequence[Rollout], name: str, what: str) -> Contest:
    """Return the races of an epoch whose samples and scores are on disk, as from the second epoch on, with TRL's.

    TRL samples in each step; once it does so, and once it gets our samples in the place of its own.
    """
    for cache, top_k, precision in (("raced", setting.top_k, "float16"), ("whole", 0, "float32")):
        cached(setting, cache, rollouts, top_k or vocabulary_size(setting), precision)
    order = order_of(setting, rollouts)

    def check() -> tuple[float, float]:
        ours, peer = fit_ours(setting, "whole")[1], fit_trl(setting, rollouts, order)[1]
        differences = [abs(one - other) / other for one, other in zip(ours, peer, strict=True)]
        return max(differences), 1e-3  # of each step's loss, the first before and the rest after AdamW's steps

    epoch = f"an epoch of {what} on {len(rollouts)} samples of {setting.new_tokens} tokens, {setting.batch_size} a step"

    def ours() -> float:
        return fit_ours(setting, "raced")[0]

    def race(id: str, title: str, peer: Callable[[], float], peer_name: str) -> Race:
        return Race(id, f"{epoch}; {title}", ours, peer, peer_name, target=TIME_TARGET)

    named, given = "TRL's DistillationTrainer", "TRL's DistillationTrainer, samples given"
    races = (
        race(f"trl_epoch_{name}", "TRL samples", lambda: fit_trl(setting, None, order)[0], named),
        race(
            f"trl_epoch_given_{name}",
            "both on our samples",
            lambda: fit_trl(setting, rollouts, order)[0],
            given,
        ),
        Race(
            f"trl_memory_{name}",
            f"peak memory of {epoch}, less what the libraries take",
            lambda: peak_of_child(setting, None, order),
            lambda: peak_of_child(setting, rollouts, order),
            given,
            unit="MB",
            target=MEMORY_TARGET,
            exact=True,
        ),
    )
    return Contest("distillation from a cache of the whole vocabulary and TRL's (losses of all steps)", check, races)


def vocabulary_size(setting: Setting) -> int:
    """Return the number of the teacher's tokens."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(setting.teacher).vocab_size)


def order_of(setting: Setting, rollouts: Sequence[Rollout]) -> list[str]:
    """Return the prompts in the order in which our datamodule gives their samples in the first epoch."""
    data = data_of(setting, "raced")
    data.setup("fit")
    written = {(*one.prompt_ids, *one.token_ids): prompt for one, prompt in zip(rollouts, setting.prompts, strict=True)}
    found = []
    for batch in data.train_dataloader():
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            found.append(written[tuple(row[mask.bool()].tolist())])
    return found


def fit_ours(setting: Setting, name: str) -> tuple[float, list[float]]:
    """Train an epoch from the cache of that name; return the seconds of the epoch and each step's loss."""
    from lightning.pytorch import Callback, Trainer

    from callbacks import OfflineDistillation

    class Clock(Callback):
        start = seconds = 0.0

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            self.losses.append(float(outputs["loss"]))

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        enable_model_summary=False,
        default_root_dir=setting.folder,
        callbacks=[OfflineDistillation.Config().build(name="distill"), clock],
        **quiet,
    )
    trainer.fit(student_module(setting), datamodule=data_of(setting, name))
    return clock.seconds, clock.losses


def fit_trl(setting: Setting, rollouts: Sequence[Rollout] | None, order: Sequence[str]) -> tuple[float, list[float]]:
    """Train an epoch with TRL, on given samples or on its own; return as `fit_ours`."""
    has_trl()
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    class Clock(TrainerCallback):
        start = seconds = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    student, teacher = (AutoModelForCausalLM.from_pretrained(model) for model in (setting.student, setting.teacher))
    if rollouts is not None:
        student.generate = GivenSamples(rollouts)
    config = DistillationConfig(
        output_dir=f"{setting.folder}/trl",
        per_device_train_batch_size=setting.batch_size,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        beta=0.0,  # the forward divergence
        max_completion_length=setting.new_tokens,
        generation_kwargs={"min_new_tokens": setting.new_tokens},
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(order)}),
        processing_class=AutoTokenizer.from_pretrained(setting.student, padding_side="left"),
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class GivenSamples:
    """Answers in place of a model's ``generate`` with samples that are there already.

    Args:
        rollouts: the samples, whose prompts differ.
    """

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.written = {one.prompt_ids: one.token_ids for one in rollouts}

    def __call__(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        """Return prompts (batch, seq) with what was written after each."""
        import torch

        prompts = [tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.cat([input_ids, torch.tensor([self.written[prompt] for prompt in prompts])], dim=1)


def peak_of_child(setting: Setting, rollouts: Sequence[Rollout] | None, order: Sequence[str]) -> float:
    """Return `peak_megabytes`, measured in a new process."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_megabytes, (setting, rollouts, order))


def peak_megabytes(setting: Setting, rollouts: Sequence[Rollout] | None, order: Sequence[str]) -> float:
    """Train an epoch in this process: ours, or TRL's where samples are given.

    Returns:
        The most memory it held, less what it held when all libraries were there, in MB.
    """
    import lightning.pytorch  # noqa: F401
    import transformers  # noqa: F401

    import callbacks
    import pangu_modules

    callbacks.OfflineDistillation, pangu_modules.CausalLM  # noqa: B018  (both are loaded when first named)
    if rollouts is not None:
        has_trl()
        from trl import DistillationTrainer  # noqa: F401
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    if rollouts is None:
        fit_ours(setting, "raced")
    else:
        fit_trl(setting, rollouts, order)
    return resident("VmHWM") - before
