"""The races of a training step with binary layers against the same with plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, LENGTH = 8, 128  # 1024 tokens
TARGET = 1 / 1.25  # at most 1.25 times the plain step
MIDDLE = 10.4
"""t of the tenth of twenty phases; the function costs the same at any t that is not 0."""
WIDTH = 576


def layer_contest() -> Contest:
    """Return the race of forward and backward of one layer."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, WIDTH, bias=False)
    binary = binarized(nn.ModuleDict({"q_proj": copy.deepcopy(plain)}))
    x = torch.randn(BATCH * LENGTH, WIDTH, requires_grad=True)
    gradient = torch.randn(BATCH * LENGTH, WIDTH)

    def step(layer: nn.Module) -> Tensor:
        layer.zero_grad()
        x.grad = None
        y: Tensor = layer(x)
        y.backward(gradient)
        return y

    def check() -> tuple[float, float]:
        return difference(binary, lambda: step(binary["q_proj"]), lambda: step(plain))

    race = Race(
        f"train_layer_{WIDTH}",
        f"forward and backward of a layer of {WIDTH}x{WIDTH} at {BATCH * LENGTH} tokens",
        milliseconds(lambda: step(binary["q_proj"])),
        milliseconds(lambda: step(plain)),
        "nn.Linear",
        unit="ms",
        target=TARGET,
    )
    return Contest("binary layer at t = 0 and plain layer (outputs)", check, (race,))


def step_contest(name: str, title: str, model_args: Mapping[str, Any]) -> Contest:
    """Return the race of a whole step of a Llama of these sizes."""
    import torch

    from pangu_modules.llm.models.loading import new_causal_lm

    torch.manual_seed(0)
    plain = new_causal_lm("llama", {**model_args, "max_position_embeddings": LENGTH})
    binary = binarized(copy.deepcopy(plain))
    ids = torch.randint(0, model_args["vocab_size"], (BATCH, LENGTH))
    steps = {"ours": Step(binary, ids), "peer": Step(plain, ids)}

    def check() -> tuple[float, float]:
        return difference(binary, steps["ours"].loss, steps["peer"].loss)

    race = Race(
        f"train_step_{name}",
        f"a training step of {title} at {BATCH * LENGTH} tokens",
        milliseconds(steps["ours"]),
        milliseconds(steps["peer"]),
        "plain linear layers",
        unit="ms",
        target=TARGET,
    )
    return Contest(f"binary {name} at t = 0 and plain (loss)", check, (race,))


class Step:
    """A training step: forward, backward and AdamW.

    Args:
        model: a transformers causal LM.
        ids: (batch, seq) tokens.
    """

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        import torch

        self.model, self.ids = model, ids
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def loss(self) -> Tensor:
        """Return the loss of the model as it is."""
        loss: Tensor = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        return loss

    def __call__(self) -> None:
        """Make a step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def binarized(model: nn.Module) -> Any:
    """Return the model with binary layers in place of those that are binarized by default, in mid-schedule."""
    from pangu_modules.llm.onebit.config import OneBitConfig
    from pangu_modules.llm.onebit.layer import ProgressiveBinaryLinear
    from pangu_modules.llm.onebit.plan import target_names

    config = OneBitConfig(init="none")
    for name in target_names(model, config):
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, ProgressiveBinaryLinear(linear, config))
    set_t(model, MIDDLE)
    return model


def difference(binary: nn.Module, ours: Callable[[], Tensor], peer: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the largest difference at t = 0, where binary layers are the plain ones, and its bound."""
    set_t(binary, 0.0)
    found = float((ours() - peer()).detach().abs().max())
    set_t(binary, MIDDLE)
    return found, 0.0


def set_t(model: nn.Module, t: float) -> None:
    """Set the schedule's t in all binary layers."""
    from pangu_modules.llm.onebit.plan import binary_layers

    for layer in binary_layers(model).values():
        layer.set_phase(t)


def milliseconds(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a measurement of one call."""
    measure = timed(function)
    return lambda: 1e3 * measure()
