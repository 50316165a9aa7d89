"""The task of DWM's claims: a recipe run with one way to weigh its data, and what its report says of the weights."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, ArmInput
from callbacks.weighting.preferences import DomainWeights, Preferences, read_preferences

if TYPE_CHECKING:
    from pangu_modules import Recipe

LATE = 2  # from the third round on (the first is uniform, in the second DWM learns for the first time)
TIMED_STEPS = 20


@dataclass(frozen=True)
class WeighedRun:
    """Trains and tests a recipe; returns its test metrics and, by round, weights, effective batch and target loss.

    Args:
        recipe: module that holds ``recipe``, whose callback ``dwm`` weighs.
        changes: what `Recipe.derive` takes; seeds of run, data and weighting are the arm's.
        weighting: fields of `BatchWeighting`, which then replaces ``dwm``; None keeps ``dwm``.
        influence: fields of `InfluenceSelection`, likewise.
        selection: fields of `SelectedMixtureData`, whose data then replace the recipe's.
        ess_from: arm whose effective batch sizes random weights take over, round by round.
        frozen_from: arm whose weighting models are used, without updates.
        noise: domains whose mean weight is ``noise_weight``, from the third round on.
        followed: domain whose weight's change from the first learned round to the last is ``shift``, in standard
            errors of the difference.
        time_overhead: measure ``overhead``, the CPU time of weighing a batch as a share of a plain training step.
    """

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    weighting: Mapping[str, Any] | None = None
    influence: Mapping[str, Any] | None = None
    selection: Mapping[str, Any] | None = None
    ess_from: str | None = None
    frozen_from: str | None = None
    noise: tuple[str, ...] = ()
    followed: str | None = None
    time_overhead: bool = False

    def derived(self, seed: int, inputs: Mapping[str, ArmInput] | None = None) -> Recipe:
        """Return the recipe that runs with this seed; without `inputs` what depends on other arms is left out."""
        from callbacks import BatchWeighting, InfluenceSelection

        recipe: Recipe = importlib.import_module(self.recipe).recipe
        changes = {**self.changes, "seed": seed, "data": {**self.changes.get("data", {}), "seed": seed}}
        callbacks = dict(changes.pop("callbacks", {}))
        if self.weighting is not None:
            fields: dict[str, Any] = {**self.weighting, "seed": seed}
            if self.ess_from and inputs is not None:
                fields["method"] = {**fields["method"], "ess": ess_by_round(inputs[self.ess_from].values)}
            callbacks = {"dwm": None, "weighting": BatchWeighting.Config(**fields)}
        elif self.influence is not None:
            callbacks = {"dwm": None, "weighting": InfluenceSelection.Config(**self.influence, seed=seed)}
        else:
            frozen = {"frozen": str(inputs[self.frozen_from].folder / "run")} if self.frozen_from and inputs else {}
            callbacks["dwm"] = {**callbacks.get("dwm", {}), **frozen, "seed": seed}
        derived = recipe.derive(**changes, callbacks=callbacks)
        return derived if self.selection is None else selected(derived, self.selection)

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Train and test in `folder`."""
        recipe = self.derived(seed, inputs)
        run = recipe.fit(run_dir=folder / "run", quiet=True)
        name = "dwm" if self.weighting is None and self.influence is None else "weighting"
        values = {**run.metrics, "parameters": run.parameters, "train_seconds": run.seconds}
        values |= self.numbers(read_preferences(folder / "run", name))
        if self.time_overhead:
            values["overhead"] = overhead(recipe, run.checkpoint, folder / "run", inputs[str(self.frozen_from)].folder)
        return values

    def numbers(self, record: Preferences) -> dict[str, float]:
        """Return what the run's record says, as numbers: by round, and over the late rounds."""
        values: dict[str, float] = {}
        for each in record.rounds:
            values[f"ess_round{each.round}"] = each.effective_batch
            if each.last_loss is not None:
                values[f"target_loss_round{each.round}"] = each.last_loss
        late = [each.effective_batch for each in record.rounds if each.round >= LATE]
        values["ess"] = statistics.fmean(late or [each.effective_batch for each in record.rounds])
        for domain in record.domains:
            values[f"tokens_{domain.domain}"] = domain.tokens
            known = {number: mean for number, mean in domain.means.items() if mean is not None}
            values |= {f"weight_{domain.domain}_round{number}": mean for number, mean in known.items()}
        if self.noise:
            values["noise_weight"] = noise_weight([each for each in record.domains if each.domain in self.noise])
        if self.followed:
            values["shift"] = shift(next(each for each in record.domains if each.domain == self.followed))
        return values


def weighed_arm(name: str, description: str, run: WeighedRun, seeds: int | None = None) -> Arm:
    """Return the arm of a `WeighedRun`; its results depend on the resolved recipe and the arms it takes from."""
    needs = tuple(other for other in (run.ess_from, run.frozen_from) if other)
    measured = {"noise": list(run.noise), "followed": run.followed, "overhead": run.time_overhead}
    return Arm(name, description, run, {"recipe": run.derived(0).plain(), **measured}, needs, seeds)


def selected(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """Return a recipe on `MixtureData` with the part of its data that an offline method keeps."""
    from datamodules import SelectedMixtureData

    return recipe.derive(data=SelectedMixtureData.Config(**dict(recipe.stages[""].data), **fields))


def ess_by_round(values: Mapping[str, float]) -> tuple[float, ...]:
    """Return an arm's effective batch sizes by round, as shares of the batch."""
    rounds = sorted(int(key.removeprefix("ess_round")) for key in values if key.startswith("ess_round"))
    return tuple(min(1.0, values[f"ess_round{number}"]) for number in rounds)


def noise_weight(domains: Sequence[DomainWeights]) -> float:
    """Return the mean weight of domains over the late rounds (all, if training has fewer); 1 is uniform."""
    rounds = sorted({number for domain in domains for number in domain.means})
    late = [number for number in rounds if number >= LATE] or rounds
    weights = [domain.means.get(number) for domain in domains for number in late]
    return statistics.fmean([weight for weight in weights if weight is not None])


def shift(domain: DomainWeights) -> float:
    """Return the change of a domain's mean weight from the first learned round to the last, in standard errors.

    Raises:
        ValueError: the domain was not seen in one of the two rounds.
    """
    rounds = sorted(domain.means)
    first, last = rounds[min(1, len(rounds) - 1)], rounds[-1]
    before, after = domain.means[first], domain.means[last]
    if before is None or after is None:
        raise ValueError(f"domain {domain.domain!r} has no sequences in round {first} or {last}: draw more data")
    error = math.hypot(domain.errors[first] or 0.0, domain.errors[last] or 0.0)
    return (after - before) / error if error else 0.0


def overhead(recipe: Recipe, checkpoint: Path, folder: Path, frozen: Path) -> float:
    """Return the CPU time of weighing a batch with a frozen model as a share of a training step's, medians of 20.

    The forward pass whose token losses are looked at is that of training, so it does not count. Weighing and training
    alternate, so that what else the machine does meets both.
    """
    import torch

    from pangu_modules import CausalLM
    from pangu_modules.llm.weighting.features import TokenLosses
    from pangu_modules.llm.weighting.protocol import per_sequence_losses
    from pangu_modules.llm.weighting.saving import load_rounds
    from pangu_modules.llm.weighting.update import weigh

    stage = recipe.stages[""]
    data = stage.data.build()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = CausalLM.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu")
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
    model = list(load_rounds(frozen / "run").values())[-1]
    with torch.no_grad():
        output = module.model(input_ids=batch["input_ids"])

    def train() -> None:
        optimizer.zero_grad()
        per_sequence_losses(module, batch).mean().backward()
        optimizer.step()

    def weigh_batch() -> None:
        with torch.no_grad():
            weigh(model, batch, TokenLosses.features(output, batch))

    weighing, training = interleaved(weigh_batch, train)
    return weighing / training


def interleaved(*actions: Callable[[], None]) -> list[float]:
    """Return the median CPU seconds of each action, taken in turn; the first round does not count."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(1 + TIMED_STEPS):
        for action, times in zip(actions, seconds, strict=True):
            start = time.process_time()
            action()
            if turn:
                times.append(time.process_time() - start)
    return [statistics.median(times) for times in seconds]
