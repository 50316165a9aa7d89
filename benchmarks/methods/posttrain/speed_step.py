"""A step of distillation from the cache against one of supervised fine-tuning, and the memory of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.methods.posttrain.speed_setting import LR, Setting, cached, data_of, student_module
from benchmarks.methods.pruning.speed import resident
from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor

    from pangu_modules.llm.generation.records import Rollout

STEP_TARGET = 1 / 1.15
MEMORY_TARGET = 4.0
POSITIONS, VOCABULARY, TOP_K = 512, 49_152, 32  # of the memory


class Step:
    """A training step as Lightning makes it: objectives, backward, clipping, AdamW.

    Args:
        module: a `CausalLM` with its objectives.
    """

    def __init__(self, module: Any) -> None:
        import torch

        self.module = module.train()
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.0)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of the module as it is."""
        from pangu_modules.training.objectives import evaluate

        outputs = self.module.compute_outputs(batch)
        return evaluate(self.module.objectives, self.module, batch, outputs).total

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """Make a step."""
        import torch

        self.optimizer.zero_grad()
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()


def cached_step(setting: Setting) -> Step:
    """Return the step of distillation from the cache, by the forward divergence."""
    from callbacks.offline_distillation import add_cached_objective
    from pangu_modules.llm.distillation.cached import CachedDistillationConfig

    module = student_module(setting)
    add_cached_objective(module, CachedDistillationConfig(), "distill")
    return Step(module)


def step_contest(setting: Setting, rollouts: Sequence[Rollout], name: str, what: str) -> Contest:
    """Return the race of both steps on the same samples; the cache's batch is in memory on both sides."""
    cached(setting, name, rollouts, setting.top_k)
    data = data_of(setting, name)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    distilling, tuning = cached_step(setting), Step(student_module(setting))

    def check() -> tuple[float, float]:
        certain = sure_of_labels(batch)
        difference = distilling.loss(certain) - tuning.loss(certain)
        return float(difference.detach().abs()), 1e-4  # two sums over the vocabulary in float32; seen 2e-6

    tokens = int((batch["labels"] != -100).sum())
    race = Race(
        f"step_{name}",
        f"a step of distillation of {what}, {tokens} target tokens, k={setting.top_k}",
        milliseconds(lambda: distilling(batch)),
        milliseconds(lambda: tuning(batch)),
        "a step of supervised fine-tuning on the same tokens",
        unit="ms",
        target=STEP_TARGET,
    )
    return Contest("divergence from a teacher that is sure of the labels, and cross-entropy", check, (race,))


def sure_of_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch as a teacher scores it that gives each token that was written the probability 1."""
    import torch

    ids, logprobs = batch["teacher_ids"].clone(), torch.full_like(batch["teacher_logprobs"], -torch.inf)
    ids[..., 0] = batch["input_ids"]
    logprobs[..., 0] = 0
    own = torch.zeros_like(batch["teacher_label_logprobs"])
    return {**batch, "teacher_ids": ids, "teacher_logprobs": logprobs, "teacher_label_logprobs": own}


def milliseconds(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a measurement of one call."""
    measure = timed(function)
    return lambda: 1e3 * measure()


def memory_contest(positions: int = POSITIONS, vocabulary: int = VOCABULARY) -> Contest:
    """Return the comparison of what the losses need beside the student's logits."""
    size = f"{positions} tokens, a vocabulary of {vocabulary:,}"

    def race(peer: str, peer_name: str, target: float | None) -> Race:
        return Race(
            f"loss_memory_{peer}",
            f"peak memory of the loss from the cache (k={TOP_K}) and its gradient, beside the logits; {size}",
            lambda: peak_of_child("cached", positions, vocabulary),
            lambda: peak_of_child(peer, positions, vocabulary),
            peer_name,
            unit="MB",
            target=target,
            exact=True,
        )

    def check() -> tuple[float, float]:
        student, teacher = logits(8, 64, seed=0), logits(8, 64, seed=1)
        cached = loss_of("cached", student, support_of(teacher, 64)) - loss_of("full", student, teacher)
        # Nothing comes after the last token of a sequence.
        resident = loss_of("resident", student, teacher) - loss_of("full", student[:-1], teacher[:-1])
        return max(abs(float(cached)), abs(float(resident))), 1e-4  # sums of 20 nats in float32; seen 1e-6

    races = (
        race("full", "F.kl_div over the vocabulary, with the teacher's logits", MEMORY_TARGET),
        race("resident", "our chunked loss with the teacher's logits", None),
    )
    return Contest("losses at k = vocabulary", check, races)


def loss_of(kind: str, student: Tensor, teacher: Any) -> Tensor:
    """Return ``sum KL(teacher || student)``.

    Args:
        kind: "cached", "full" (torch's own) or "resident" (our chunks, with a teacher at hand).
        student: logits, (positions, vocabulary).
        teacher: its support if "cached", else its logits, (positions, vocabulary).
    """
    import torch
    from torch.nn import functional

    from pangu_modules.llm.distillation.divergences import DivergenceConfig, cached_divergence
    from pangu_modules.llm.distillation.loss import token_divergences

    if kind == "cached":
        return cached_divergence(student, teacher, DivergenceConfig()).sum()
    if kind == "full":
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        return functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
    labels = torch.zeros(1, len(student), dtype=torch.long)
    return token_divergences(student[None], teacher[None], labels)[0].sum()


def support_of(teacher: Tensor, top_k: int) -> Any:
    """Return what a cache holds of a teacher's logits, (positions, vocabulary)."""
    from pangu_modules.llm.distillation.support import TeacherSupport

    top = teacher.log_softmax(-1).topk(top_k)
    return TeacherSupport.of(top.indices, top.values)


def logits(positions: int, vocabulary: int, seed: int) -> Tensor:
    """Return random logits, (positions, vocabulary)."""
    import torch

    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


def peak_of_child(kind: str, positions: int, vocabulary: int) -> float:
    """Return `peak_megabytes`, measured in a new process."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_megabytes, (kind, positions, vocabulary))


def peak_megabytes(kind: str, positions: int, vocabulary: int) -> float:
    """Return the most memory this process held for a loss and its gradient beside the student's logits, in MB.

    The teacher's logits count where the loss needs them.
    """

    def known() -> Any:
        if kind != "cached":
            return logits(positions, vocabulary, seed=1)
        narrow = support_of(logits(positions, 2 * TOP_K, seed=1), TOP_K)
        return replace(narrow, ids=narrow.ids * (vocabulary // (2 * TOP_K)))

    tiny = logits(8, 64, seed=0).requires_grad_()  # brings into memory what libraries need
    loss_of(kind, tiny, support_of(tiny.detach(), TOP_K) if kind == "cached" else tiny.detach()).backward()
    student = logits(positions, vocabulary, seed=0).requires_grad_()
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    loss_of(kind, student, known()).backward()
    return resident("VmHWM") - before
