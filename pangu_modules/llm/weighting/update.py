"""Weights of a batch, and one update of the model that gives them: the two operations DWM is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from pangu_modules.llm.weighting.features import FeatureReader
from pangu_modules.llm.weighting.hypergradient import Engine, Lookahead, hypergradient
from pangu_modules.llm.weighting.model import DataWeightingModel, model_inputs
from pangu_modules.llm.weighting.protocol import sequences_with_targets
from pangu_modules.training.objectives import Batch
from pangu_modules.training.processes import Processes


@dataclass(frozen=True)
class Weighed:
    """The weights of a batch.

    Args:
        own: (batch,), of this process's sequences.
        whole: (whole batch,), of all sequences that were weighed together; sums to 1.
    """

    own: Tensor
    whole: Tensor

    @property
    def sample_weight(self) -> Tensor:
        """What goes to ``batch["sample_weight"]``: 1 is an ordinary sample, so ``whole batch * w``; (batch,)."""
        return len(self.whole) * self.own.detach()


@dataclass(frozen=True)
class UpdateResult:
    """What happened in an update.

    Args:
        h: (batch,), the hypergradient of this process's sequences.
        weights: (batch,), their weights before the update.
        target_loss: of the target batch after the step that was looked ahead.
        skipped: whether h was not finite, so that the model is unchanged.
    """

    h: Tensor
    weights: Tensor
    target_loss: float
    skipped: bool


def weigh(
    model: DataWeightingModel, batch: Batch, features: Tensor | None = None, group: Processes | None = None
) -> Weighed:
    """Return the weights of a batch, differentiable with respect to the weighting model's parameters.

    Args:
        model: the weighting model.
        batch: batch of this process.
        features: (batch, size) of the trained model's forward pass, for the encoders 'lm' and 'losses'.
        group: processes whose batches are weighed as one; None for this one's alone.

    Raises:
        ValueError: fewer than two sequences, or none with a target.
    """
    group = group or Processes()
    valid = sequences_with_targets(batch)
    device = next(model.parameters()).device
    with torch.autocast(device.type, enabled=False):  # weights are computed in float32 wherever they are asked for
        encodings = group.rows(model.encode(**model_inputs(batch, features)))
        all_valid = None if valid is None else group.rows(valid)
        whole = model.weights(model.score(encodings, all_valid), all_valid)
    return Weighed(own=group.own(whole), whole=whole)


@dataclass(frozen=True)
class UpdateSettings:
    """How an update is taken.

    Args:
        engine: see `hypergradient`.
        fd_scale: see `hypergradient`.
        normalize_h: ``h <- (h - mean) / (deviation + 1e-8)``.
        sync_weights: whether all processes' batches are weighed as one.
    """

    engine: Engine = "fd"
    fd_scale: float = 1e-2
    normalize_h: bool = False
    sync_weights: bool = False


def update_weighting_model(
    model: DataWeightingModel,
    optimizer: Optimizer,
    ahead: Lookahead,
    settings: UpdateSettings | None = None,
    reader: FeatureReader | None = None,
) -> UpdateResult:
    """Take one step of `optimizer` on the weighting model; the trained model and random numbers stay as they are.

    The step goes down the surrogate ``-sum_i w_i h_i`` with h constant (arXiv:2507.16178, bi-level problem, chain
    rule through one step of the trained model).

    Args:
        model: the weighting model.
        optimizer: of the weighting model.
        ahead: the trained model's next step, on the batch whose sequences are weighed, and the target.
        settings: how; None for the defaults.
        reader: for the encoders 'lm' and 'losses'.
    """
    settings, processes = settings or UpdateSettings(), ahead.processes
    group = processes if settings.sync_weights else Processes()
    weighed: list[Weighed] = []
    features: list[Tensor] = []
    if reader is not None:
        reader.expect(ahead.train, features.append)

    def weights() -> Tensor:
        weighed.append(weigh(model, ahead.train, features[0] if features else None, group))
        # Apart from a common group, each process has its own batch, and the step is the mean of theirs.
        return weighed[0].own * (group.world_size / processes.world_size)

    found = hypergradient(ahead, weights, engine=settings.engine, fd_scale=settings.fd_scale)
    h = group.rows(found.h.float())
    result = UpdateResult(found.h, weighed[0].own.detach(), float(found.target_loss), not _finite(h, processes))
    if not result.skipped:
        h = (h - h.mean()) / (h.std() + 1e-8) if settings.normalize_h else h
        optimizer.zero_grad()
        with torch.enable_grad():
            (-(weighed[0].whole * h).sum()).backward()
        _reduce_gradients(model, group, processes)
        optimizer.step()
    optimizer.zero_grad()
    return result


def _finite(h: Tensor, processes: Processes) -> bool:
    """Return whether h is finite on all processes, which must decide alike."""
    (bad,) = processes.sum_([(~h.isfinite()).sum().float()])
    return not bad


def _reduce_gradients(model: DataWeightingModel, group: Processes, processes: Processes) -> None:
    """Make the gradients of all processes those of the whole.

    Encodings were gathered without gradients but a process's own, so the encoder's gradients are parts of a sum; what
    comes after them saw the whole batch on each process. Batches weighed apart are averaged.
    """
    if processes.world_size == 1:
        return
    together = group.world_size > 1
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            processes.sum_([parameter.grad])
            if not (together and model.is_encoder(name)):
                parameter.grad /= processes.world_size
