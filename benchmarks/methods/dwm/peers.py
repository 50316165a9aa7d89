"""What DWM's hypergradient is raced against: differentiating through a step of SGD, with TorchOpt or by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def torchopt_slopes(
    weighting: Any, module: nn.Module, losses_of: nn.Module, train: Any, target: Any, *, lr: float
) -> list[Tensor]:
    """Return the gradient of the target's loss for the weighting model, through TorchOpt's differentiable SGD."""
    import torch
    import torchopt

    inner = torchopt.MetaSGD(module, lr=lr)
    state = torchopt.extract_state_dict(module, by="reference")
    module.eval()
    w = weighting.weights(weighting(train["input_ids"]))
    inner.step((w * losses_of(train)).sum())
    slopes = torch.autograd.grad(losses_of(target).mean(), list(weighting.parameters()))
    torchopt.recover_state_dict(module, state)
    module.train()
    return list(slopes)


def unrolled_slopes(
    weighting: Any, module: nn.Module, losses_of: nn.Module, train: Any, target: Any, *, lr: float
) -> list[Tensor]:
    """Return the same by `torch.func.functional_call` on parameters that keep the graph of their step."""
    import torch

    module.eval()
    values = dict(losses_of.named_parameters())
    w = weighting.weights(weighting(train["input_ids"]))
    gradients = torch.autograd.grad((w * losses_of(train)).sum(), list(values.values()), create_graph=True)
    moved = {name: value - lr * g for (name, value), g in zip(values.items(), gradients, strict=True)}
    loss = torch.func.functional_call(losses_of, moved, (target,)).mean()
    slopes = torch.autograd.grad(loss, list(weighting.parameters()))
    module.train()
    return list(slopes)
