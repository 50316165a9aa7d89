"""Hypergradients of data weights: how much each sequence of a batch would help the target, by four engines.

One step of the trained model on weighted data is unrolled (Yu et al. 2025, arXiv:2507.16178, bi-level problem)::

    theta'(w) = theta - lr P sum_i w_i grad l_i(theta)
    d L_val(theta') / d w_i = -lr <grad L_val(theta'), P grad l_i(theta)> = -lr h_i                            (1)

with P the optimizer's preconditioner, a positive factor per parameter (identity for SGD). theta' is linear in w, so
that (1) is exact and needs no Hessian. The engines differ in how they get h, and agree:

- ``exact``: differentiates through the step; the reference, for one process. Memory of two to three training steps.
- ``dot``: one backward pass per sequence, and its dot product with the target's gradient.
- ``jvp``: all dot products in one forward-mode pass.
- ``fd``: all dot products by two forward passes with the weights displaced along the target's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pangu_modules.llm.weighting.protocol import sequence
from pangu_modules.training.module import batch_size
from pangu_modules.training.objectives import Batch
from pangu_modules.training.processes import Processes

Engine = Literal["fd", "jvp", "dot", "exact"]
Parameters = Mapping[str, nn.Parameter]
Precondition = Callable[[Sequence[Tensor]], list[Tensor]]
"""From the gradients of the step, in the parameters' order, to the factor P of each."""


@dataclass(frozen=True)
class Hypergradient:
    """What an engine found.

    Args:
        h: (batch,), agreement of each sequence's gradient with the target's; see (1).
        losses: (batch,), losses of the training batch before the step.
        target_loss: scalar, the target's loss after the step.
    """

    h: Tensor
    losses: Tensor
    target_loss: Tensor


@dataclass(frozen=True)
class Lookahead:
    """A step of the trained model on weighted data that is looked ahead, and what shall get better by it.

    Of several processes, each gives its own part of both batches; the step and the target's gradient are those of all
    parts together.

    Args:
        losses_of: module that maps a batch to its losses (batch,), see `protocol.LossesOf`.
        parameters: the trained parameters by their names in `losses_of`.
        train: batch of the step.
        target: batch of L_val, the mean of its losses.
        lr: learning rate of the step.
        precondition: P from the step's gradients; None for SGD.
        processes: those that train together.
    """

    losses_of: nn.Module
    parameters: Parameters
    train: Batch
    target: Batch
    lr: float
    precondition: Precondition | None = None
    processes: Processes = field(default_factory=Processes)


def hypergradient(
    ahead: Lookahead, weights: Tensor | Callable[[], Tensor], *, engine: Engine = "fd", fd_scale: float = 1e-2
) -> Hypergradient:
    """Return h of equation (1); parameters, random numbers and training mode are afterwards what they were.

    Dropout is off and batch statistics are those of evaluation.

    Args:
        ahead: the step and the target.
        weights: w, (batch,), or a function that returns them, called after the forward pass over the training batch.
        engine: how h is computed.
        fd_scale: norm of the displacement, engine ``fd`` alone.

    Raises:
        ValueError: the engine cannot serve this model; see `check_engine`.
    """
    losses_of, parameters = ahead.losses_of, ahead.parameters
    check_engine(engine, losses_of, parameters, ahead.processes)
    with undisturbed(losses_of), torch.enable_grad():
        if engine == "exact":
            return _exact(ahead, weights)
        losses, direction, target_loss = _target_direction(ahead, weights)
        if engine == "fd":
            h = finite_difference(losses_of, parameters, ahead.train, direction, fd_scale)
        elif engine == "jvp":
            h = forward_mode(losses_of, parameters, ahead.train, direction)
        else:
            h = dot_products(losses_of, parameters, ahead.train, direction)
    return Hypergradient(h, losses, target_loss)


def check_engine(
    engine: Engine, losses_of: nn.Module, parameters: Parameters, processes: Processes | None = None
) -> None:
    """Refuse an engine that cannot serve this model.

    Raises:
        ValueError: ``exact`` or ``jvp`` with fused attention, ``exact`` in several processes, or ``fd`` with
            half-precision parameters.
    """
    if engine in ("exact", "jvp"):
        kernel = attention_kernel(losses_of)
        if kernel not in (None, "eager"):
            raise ValueError(
                f"engine={engine!r} takes derivatives of attention that the fused kernel {kernel!r} does not have: "
                'build the model with attn_implementation="eager", or set engine="fd"'
            )
    if engine == "exact" and processes is not None and processes.world_size > 1:
        raise ValueError('engine="exact" is the reference for one process: set engine="fd", or train with devices=1')
    if engine == "fd":
        for name, parameter in parameters.items():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                raise ValueError(
                    f'engine="fd" needs float32 parameters, but {name} is {parameter.dtype}, in which the difference '
                    'of two losses is lost: train with precision "32-true" or "bf16-mixed", or set engine="dot"'
                )


def attention_kernel(module: nn.Module) -> str | None:
    """Return the attention kernel of a transformers model inside `module`, or None without one."""
    for part in module.modules():
        kernel = getattr(getattr(part, "config", None), "_attn_implementation", None)
        if isinstance(kernel, str):
            return kernel
    return None


# Engines: each returns <direction, grad l_i> of all sequences, (batch,).


def finite_difference(
    losses_of: nn.Module, parameters: Parameters, batch: Batch, direction: Sequence[Tensor], scale: float
) -> Tensor:
    """Return ``[l(theta + e u) - l(theta - e u)] / (2 e)`` with ``e = scale / |u|`` for the direction u.

    The parameters are displaced in place and copied back; both passes see the same random numbers.
    """
    norm = torch.stack([torch.linalg.vector_norm(part) for part in direction]).norm()
    step = scale / float(norm) if norm != 0 else 0.0
    if step == 0.0:
        return torch.zeros(batch_size(batch), device=norm.device)
    with torch.no_grad(), kept(parameters):
        sides = []
        for move in (step, -2 * step):
            for parameter, part in zip(parameters.values(), direction, strict=True):
                parameter.add_(part.to(parameter.dtype), alpha=move)
            torch.manual_seed(0)
            sides.append(losses_of(batch))
        difference: Tensor = (sides[0] - sides[1]) / (2 * step)
    return difference


def forward_mode(losses_of: nn.Module, parameters: Parameters, batch: Batch, direction: Sequence[Tensor]) -> Tensor:
    """Return the directional derivatives of all losses by one forward-mode pass."""
    primals = {name: parameter.detach() for name, parameter in parameters.items()}
    tangents = dict(zip(primals, direction, strict=True))

    def losses(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(losses_of, values, (batch,))
        return result

    with torch.no_grad():
        products: Tensor = torch.func.jvp(losses, (primals,), (tangents,))[1]
    return products


def dot_products(losses_of: nn.Module, parameters: Parameters, batch: Batch, direction: Sequence[Tensor]) -> Tensor:
    """Return the dot product of each sequence's own gradient with the direction, one sequence after another."""
    products = []
    for index in range(batch_size(batch)):
        loss = losses_of(sequence(batch, index)).sum()
        gradients = gradients_of(loss, parameters)
        products.append(sum((a * b).sum() for a, b in zip(gradients, direction, strict=True)))
    return torch.stack([torch.as_tensor(product) for product in products])


def _exact(ahead: Lookahead, weights: Tensor | Callable[[], Tensor]) -> Hypergradient:
    losses_of, parameters, lr = ahead.losses_of, ahead.parameters, ahead.lr
    if lr <= 0:
        raise ValueError(f'engine="exact" divides by the learning rate, which is {lr} here: set engine="fd"')
    losses = losses_of(ahead.train)
    w = (weights if isinstance(weights, Tensor) else weights()).detach().requires_grad_()
    gradients = gradients_of((w * losses).sum(), parameters, create_graph=True)
    factors = None if ahead.precondition is None else ahead.precondition([gradient.detach() for gradient in gradients])
    moved = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        step = gradients[index] if factors is None else factors[index] * gradients[index]
        moved[name] = parameter - lr * step
    target_loss = torch.func.functional_call(losses_of, moved, (ahead.target,)).mean()
    (slope,) = torch.autograd.grad(target_loss, w)
    return Hypergradient(-slope / lr, losses.detach(), target_loss.detach())


def _target_direction(ahead: Lookahead, weights: Tensor | Callable[[], Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the losses at theta, the direction ``P grad L_val(theta')``, and L_val at theta'."""
    losses_of, parameters, processes = ahead.losses_of, ahead.parameters, ahead.processes
    losses = losses_of(ahead.train)
    w = (weights if isinstance(weights, Tensor) else weights()).detach()
    steps = gradients_of((w * losses).sum(), parameters)
    processes.sum_(steps)
    factors = None if ahead.precondition is None else ahead.precondition(steps)
    with kept(parameters):
        with torch.no_grad():
            for index, parameter in enumerate(parameters.values()):
                step = steps[index] if factors is None else steps[index].mul_(factors[index])
                parameter.sub_(step.to(parameter.dtype), alpha=ahead.lr)
        del steps
        target_losses = losses_of(ahead.target)
        count = processes.sum_([torch.tensor(float(len(target_losses)), device=losses.device)])[0]
        target_loss = target_losses.sum() / count
        direction = gradients_of(target_loss, parameters)
    processes.sum_(direction)
    if factors is not None:
        for part, factor in zip(direction, factors, strict=True):
            part.mul_(factor)
    (total,) = processes.sum_([target_loss.detach().clone()])
    return losses.detach(), direction, total


def gradients_of(loss: Tensor, parameters: Parameters, *, create_graph: bool = False) -> list[Tensor]:
    """Return the gradient for each parameter, zero where the loss does not depend on it; ``.grad`` is left alone."""
    values = list(parameters.values())
    gradients = torch.autograd.grad(loss, values, create_graph=create_graph, allow_unused=True)
    return [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(values, gradients, strict=True)
    ]


@contextmanager
def kept(parameters: Parameters) -> Iterator[None]:
    """Copy the parameters, and copy them back at the end: adding a displacement back would leave rounding errors."""
    copies = [parameter.detach().clone() for parameter in parameters.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, copy in zip(parameters.values(), copies, strict=True):
                parameter.copy_(copy)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run `module` as in evaluation, and leave its mode and the random numbers as they were.

    Layers that recompute their activations do so only in training mode; they stay in it, their parts do not.
    """
    modes = {part: part.training for part in module.modules()}
    device = next(module.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        module.eval()
        for part in modes:
            if getattr(part, "gradient_checkpointing", False):
                part.training = modes[part]
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
