"""The task of the pruning claims: SmolLM2-135M on Python's reference texts, in splits that share no 16 tokens in a row.

An arm is a *group* of variants, so that the model, the texts and the teacher's logits are loaded once; the other
variants of a group are arms that take their numbers from it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric
from pangu_modules.common.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

WINDOW, NGRAM, MAX_SETS = 128, 16, 3
VARIANTS_FILE = "variants.json"

START = Metric("perplexity", "perplexity", digits=2, higher_is_better=False, log_axis=True)
REMOVED = Metric("removed", "parameters removed", "%", scale=100, digits=1)

TEXT = (
    "SmolLM2-135M-Instruct (4-bit weights dequantised) on the reference texts of Python's help system, in windows of "
    "128 tokens: 40 held out, 32 for calibration (another set for each seed), the rest for recovery; windows that "
    "share 16 tokens in a row with an earlier one of these are left out, so that the three share none. Pruning runs in "
    "float32; perplexity and recovery in bfloat16 autocast. Recovery is distillation (forward KL on logits) from the "
    "unpruned model on batches of 4 windows, the same for all, AdamW (0.9, 0.95), weight decay 0.1, learning rate 3e-4 "
    "with a cosine, gradients clipped to norm 1. The CPU time of a group of arms is in its first one."
)


@dataclass(frozen=True)
class Variant:
    """One way to prune, as plain data for its group's function.

    Args:
        name: of its arm.
        description: one line for the table.
        config: what the group's function does with the model.
        steps: recovery steps after which the perplexity is measured, ascending; the last is the length of the recovery.
        seeds: calibration sets it runs on (None: all).
        trained_seeds: calibration sets on which it is recovered (None: all).
    """

    name: str
    description: str
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    seeds: int | None = None
    trained_seeds: int | None = None


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, (n, 128) each, and how many were removed because they share text with others.

    What a group's variants may share (scores of the unpruned model) is kept in `shared`.
    """

    held_out: Tensor
    calibration: Tensor
    recovery: Tensor
    removed: int
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """Calibration batches of 8 windows."""
        return [{"input_ids": part} for part in self.calibration.split(8)]


Apply = Callable[["nn.Module", Mapping[str, Any], Texts, int], None]
"""``(model, config, texts, seed)``: prune the model in place."""


@dataclass(frozen=True)
class Group:
    """Runs all variants of a group on a copy of the model each; returns the first one's numbers.

    Args:
        variants: the variants; the first one is the arm itself.
        apply: prunes a model as a variant's config says.
        miniature: a part of the model and little text.
    """

    variants: tuple[Variant, ...]
    apply: Apply
    miniature: bool = False

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Run the variants that this seed has."""
        texts, dense = load_texts(seed, self.miniature), load_model(self.miniature)
        steps = max((variant.steps[-1] for variant in self.variants if variant.steps), default=0)
        recovery = Recovery(dense, texts.recovery, steps, seed, 1 if self.miniature else 4) if steps else None
        results: dict[str, dict[str, float]] = {}
        for variant in self.variants:
            if variant.seeds is None or seed < variant.seeds:
                results[variant.name] = self._run(variant, dense, texts, recovery, seed)
                print(variant.name, results[variant.name], flush=True)
        write_atomically(folder / VARIANTS_FILE, json.dumps(results))
        return results[self.variants[0].name]

    def _run(
        self, variant: Variant, dense: nn.Module, texts: Texts, recovery: Recovery | None, seed: int
    ) -> dict[str, float]:
        model = copy.deepcopy(dense)
        self.apply(model, variant.config, texts, seed)
        numbers = {"perplexity": perplexity_of(model, texts.held_out), "removed": 1 - size_of(model) / size_of(dense)}
        trained = variant.trained_seeds is None or seed < variant.trained_seeds
        if variant.steps and trained and recovery is not None:
            for step, value in recovery.train(model, variant.steps, texts.held_out).items():
                numbers[f"after_{step}"] = value
        return numbers


@dataclass(frozen=True)
class Pick:
    """Takes a variant's numbers from the arm that ran its group."""

    name: str
    leader: str

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Read them."""
        stored = (inputs[self.leader].folder / VARIANTS_FILE).read_text(encoding="utf-8")
        numbers: dict[str, float] = json.loads(stored)[self.name]
        return numbers


def group_arms(variants: Sequence[Variant], apply: Apply, *, miniature: bool) -> tuple[Arm, ...]:
    """Return the arms of a group: the first runs all, the others pick.

    Args:
        variants: the first must run on all seeds.
        apply: see `Group`.
        miniature: see `Group`; recovery takes the same number of steps, on fewer layers.
    """
    leader = variants[0]
    config = {"variants": [asdict(variant) for variant in variants], "text": TEXT, "miniature": miniature}
    first = Arm(leader.name, leader.description, Group(tuple(variants), apply, miniature), config)
    return (first, *picking_arms(variants))


def picking_arms(variants: Sequence[Variant]) -> tuple[Arm, ...]:
    """Return the arms of all variants but the first, which runs them."""
    leader = variants[0]
    return tuple(
        Arm(
            variant.name,
            variant.description,
            Pick(variant.name, leader.name),
            config={"variant": asdict(variant)},
            needs=(leader.name,),
            seeds=variant.seeds,
        )
        for variant in variants[1:]
    )


# The model and its text.


def load_model(miniature: bool) -> nn.Module:
    """Return SmolLM2-135M in float32 and evaluation mode; in miniature its first eight layers."""
    from pangu_modules.llm.models.loading import load_causal_lm
    from pangu_modules.llm.pruning import surgery

    model = load_causal_lm("smollm2").eval()
    if miniature:
        surgery.keep_layers(model, range(8))
        surgery.refresh_config(model)
    return model


def load_texts(seed: int, miniature: bool) -> Texts:
    """Draw the windows: held-out ones first, the same for all seeds; then three sets for calibration; then the rest.

    Raises:
        RuntimeError: two splits share 16 tokens in a row.
    """
    import torch

    from datamodules.text.ngrams import sequences_sharing, shared_ngrams
    from datamodules.text.reading import PYTHON_TOPICS, read_texts
    from datamodules.text.windows import pack, tokenize
    from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

    held_out, calibration, length = (2, 4, 32) if miniature else (40, 32, WINDOW)
    windows = pack(tokenize(read_texts(PYTHON_TOPICS, ""), load_tokenizer("smollm2")), length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    first, rest = windows[order[:held_out]], windows[order[held_out:]]
    apart = rest[~sequences_sharing(rest, first, NGRAM)]
    sets, rest = apart[: MAX_SETS * calibration], apart[MAX_SETS * calibration :]
    own = sets[(seed % MAX_SETS) * calibration :][:calibration]
    recovery = rest[~sequences_sharing(rest, sets, NGRAM)]
    for one, other in ((first, own), (first, recovery), (own, recovery)):
        if shared_ngrams(one, other, NGRAM):
            raise RuntimeError("two splits of the text share 16 tokens in a row")
    removed = len(windows) - held_out - len(sets) - len(recovery)
    return Texts(first.long(), own.long(), recovery.long(), removed)


def perplexity_of(model: nn.Module, windows: Tensor) -> float:
    """Return the perplexity on held-out windows (n, 128), in bfloat16 autocast."""
    import torch

    from pangu_modules.llm.models.perplexity import perplexity

    with torch.autocast("cpu", torch.bfloat16):
        return perplexity(model, [{"input_ids": part} for part in windows.split(8)])


def size_of(model: nn.Module) -> int:
    """Return the number of parameters."""
    from pangu_modules.common.parameters import count_parameters

    return count_parameters(model)


class Recovery:
    """Distillation on the same batches for every model; the teacher runs once over them.

    Args:
        teacher: the unpruned model.
        windows: (n, 128), enough for all steps; none is used twice.
        steps: optimizer steps.
        seed: of the order of windows.
        batch_size: windows of a step.
    """

    def __init__(self, teacher: nn.Module, windows: Tensor, steps: int, seed: int, batch_size: int = 4) -> None:
        import torch

        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
        self.batches = list(windows[order[: batch_size * steps]].split(batch_size))
        runner: Any = teacher
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            self.targets = [runner(batch, use_cache=False).logits.bfloat16() for batch in self.batches]

    def train(self, model: nn.Module, steps: Sequence[int], held_out: Tensor) -> dict[int, float]:
        """Train for ``steps[-1]`` steps in place; return the perplexity after each of `steps`."""
        import torch

        from pangu_modules.llm.distillation.loss import distillation_loss
        from pangu_modules.training.optim import OptimizerConfig, build_optimizer

        settings = OptimizerConfig(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05)
        optimizer, scheduler = build_optimizer(model, settings, steps[-1])
        student: Any = model.requires_grad_(True)
        values = {}
        for step in range(1, steps[-1] + 1):
            batch, target = self.batches[step - 1], self.targets[step - 1]
            with torch.autocast("cpu", torch.bfloat16):
                logits = student(batch, use_cache=False).logits
            distillation_loss(logits, target, batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step in steps:
                values[step] = perplexity_of(model, held_out)
        return values
