"""Parts of a model that runs the same weights several times: adapters, references to shared modules, residual gates.

A shared module is registered once, at its owner. Whoever else calls it holds a `SharedModule`, which keeps owner and
name outside the module registry: `parameters()`, state dict, optimizer and FSDP see each tensor once, and a deep copy
or a pickle of the whole model refers to its own copy of the owner, because both follow the same object graph.
What gathers parameters when a module is called (FSDP) must wrap the shared modules, attention and MLP, and not the
blocks around them: another instance's call does not pass through the owner's block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.vision.scalenet.config import ScaleNetConfig


class ParallelAdapter(nn.Module):
    """A bottleneck beside a sub-module: ``scale * up(activation(down(x)))``, zero until it is trained.

    `up` starts at zero; the start of `down` decides how soon the adapter learns (see
    `ScaleNetConfig.adapter_init`).

    Args:
        width: features of input and output.
        config: rank, activation, scale and start of the adapter.
        device: where the parameters are created.
        dtype: type of the parameters.
    """

    scale: nn.Parameter | float

    def __init__(
        self,
        width: int,
        config: ScaleNetConfig,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rank = adapter_rank(config, width)
        self.down = nn.Linear(width, rank, device=device, dtype=dtype)
        self.activation = nn.GELU() if config.adapter_activation == "gelu" else nn.Identity()
        self.up = nn.Linear(rank, width, device=device, dtype=dtype)
        # One dimension, not zero: sharding along the first dimension needs one.
        start = torch.full((1,), config.adapter_scale, device=device, dtype=dtype)
        self.scale = nn.Parameter(start) if config.learnable_adapter_scale else config.adapter_scale
        nn.init.kaiming_uniform_(self.down.weight, a=0.0 if config.adapter_init == "kaiming" else math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapter's addition, x: (..., width) -> (..., width)."""
        output: Tensor = self.up(self.activation(self.down(x)))
        unscaled = isinstance(self.scale, float) and self.scale == 1.0
        return output if unscaled else self.scale * output


def adapter_rank(config: ScaleNetConfig, width: int) -> int:
    """Return the rank of an adapter of this width."""
    if config.adapter_rank == "auto":
        return min(width, 16 if width <= 384 else 32)
    return config.adapter_rank


class _Standin(nn.Module):
    """A module that takes another one's place and answers for its public attributes."""

    def resolve(self) -> nn.Module:
        """Return the module this one stands for."""
        raise TypeError(f"{type(self).__name__} does not define resolve()")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Private names stay with this module: copying and pickling ask for them before the state is complete.
            if name.startswith("_"):
                raise
            return getattr(self.resolve(), name)


class SharedModule(_Standin):
    """Calls a module that belongs to another part of the model.

    Args:
        owner: the module that has the shared one registered.
        name: attribute of the owner, looked up at every call, so that replacing it there replaces it here.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self._source = (owner, name)  # a tuple is not registered

    def resolve(self) -> nn.Module:
        """Return the shared module without the adapter that its owner may have put around it."""
        owner, name = self._source
        module: nn.Module = getattr(owner, name)
        return module.module if isinstance(module, AdaptedModule) else module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the shared module."""
        return self.resolve()(*args, **kwargs)


class AdaptedModule(_Standin):
    """A module and its parallel adapter: ``module(x) + adapter(x)``.

    Args:
        module: maps (..., width) to (..., width); further arguments go to it alone.
        adapter: its adapter.
    """

    def __init__(self, module: nn.Module, adapter: ParallelAdapter) -> None:
        super().__init__()
        self.module = module
        self.adapter = adapter

    def resolve(self) -> nn.Module:
        """Return the adapted module."""
        return self.module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum of both, of the shape of `x`."""
        output: Tensor = self.module(x, *args, **kwargs) + self.adapter(x)
        return output


class ResidualGate(nn.Module):
    """Multiplies a residual branch by a trained number that starts at 0, then applies stochastic depth."""

    def __init__(self, drop_path: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated branch, of the shape of `x`."""
        output: Tensor = self.drop_path(self.gate * x)
        return output


def pretrained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of an expanded model that come from its base, by name, without the classification head."""
    added = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ParallelAdapter) or _is_added_instance(module)
        for parameter in module.parameters()
    }
    get_head = getattr(model, "get_classifier", tuple)  # of timm's models; a model without it has no head to spare
    head: Any = get_head()
    heads = head if isinstance(head, tuple) else (head,)
    added.update(id(parameter) for module in heads for parameter in module.parameters())
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in added}


def _is_added_instance(module: nn.Module) -> bool:
    children = [child.module if isinstance(child, AdaptedModule) else child for child in module.children()]
    return not isinstance(module, AdaptedModule) and any(isinstance(child, SharedModule) for child in children)
