"""BinarizePlan: which linear layers of a model are binary, and whether they still train or are final."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from pangu_modules.common.names import nearest
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.layer import InputScaledLinear, ProgressiveBinaryLinear
from pangu_modules.training.module import PanguModule
from pangu_modules.training.structure import Plan

LINEAR_CLASSES = (nn.Linear, InputScaledLinear, ProgressiveBinaryLinear)


class BinarizePlan(Plan):
    """Linear layers replaced by binary ones: in training by `ProgressiveBinaryLinear`, at the end by plain layers."""

    kind: Literal["binarize"] = "binarize"
    onebit: OneBitConfig = Field(OneBitConfig(), description="Which layers, by which method.")
    final: bool = Field(False, description="Training is over: the layers are plain, and their rows hold two values.")

    def apply(self, module: PanguModule) -> None:  # type: ignore[override]
        """Replace the layers of ``module.model`` in place; the weights of a final plan are loaded afterwards.

        Raises:
            ValueError: no layer matches, or one of them cannot be binarized.
        """
        model = module.model
        for name in target_names(model, self.onebit):
            linear = model.get_submodule(name)
            if not isinstance(linear, nn.Linear):  # by an earlier application
                continue
            if not self.final:
                model.set_submodule(name, ProgressiveBinaryLinear(linear, self.onebit))
            elif self.onebit.keeps_input_scale and not isinstance(linear, InputScaledLinear):
                model.set_submodule(name, _with_input_scale(linear))


def binarized_linears(model: nn.Module, plan: BinarizePlan, *, ternary: bool = False) -> dict[str, nn.Linear]:
    """Return the layers that a final plan made binary, by their full names, in the order of the model.

    Every row of their weights holds the two values +s and -s; the plan's input scale, if it has one, is the buffer
    ``in_scale`` of an `InputScaledLinear`.

    Args:
        model: the model the plan was applied to.
        plan: final.
        ternary: take a ternary method too, whose rows hold -s, 0 and +s.

    Raises:
        ValueError: the plan is not final, or its method is neither binary nor taken.
    """
    if not plan.final:
        raise ValueError(
            "the weights are still latent: end the training (ProgressiveBinarization makes them binary), or call "
            "finalize_module(module) first"
        )
    if plan.onebit.function.values_per_row != 2 and not ternary:
        raise ValueError(
            f"method {plan.onebit.method!r} is ternary: its rows hold three values, not two; formats that hold them: "
            "gguf_tq1_0, gguf_tq2_0, gguf and transformers"
        )
    linears = {name: model.get_submodule(name) for name in target_names(model, plan.onebit)}
    return {name: linear for name, linear in linears.items() if isinstance(linear, nn.Linear)}


def binary_layers(model: nn.Module) -> dict[str, ProgressiveBinaryLinear]:
    """Return the layers that still train, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ProgressiveBinaryLinear)}


def target_names(model: nn.Module, config: OneBitConfig) -> list[str]:
    """Return the full names of the layers that the configuration selects, in the model's order.

    Raises:
        ValueError: none matches, or one is the output layer, no `nn.Linear`, or shares its weight.
    """
    excluded = [re.compile(pattern) for pattern in config.exclude]
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in config.targets and not any(pattern.search(name) for pattern in excluded)
    ]
    if not found:
        raise ValueError(_nothing_matches(model, config))
    for name, layer in found:
        _check_class(name, layer)
    _check_alone(model, [name for name, _ in found])
    return [name for name, _ in found]


def check_weights(model: nn.Module, config: OneBitConfig) -> list[str]:
    """Check the values of the layers to binarize; return those that have a row of zeros, whose scale is 0.

    Raises:
        ValueError: a weight is not float32 (or float64), or not finite.
    """
    zeros = []
    for name in target_names(model, config):
        weight: Any = model.get_submodule(name).weight
        if weight.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name}: latent weights in {str(weight.dtype).removeprefix('torch.')} cannot take small steps; load "
                "the model in float32 and train with trainer.precision='bf16-mixed'"
            )
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name}: the weight holds NaN or infinite values; repair the checkpoint first")
        if bool((weight == 0).all(1).any()):
            zeros.append(name)
    return zeros


def _nothing_matches(model: nn.Module, config: OneBitConfig) -> str:
    names = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, LINEAR_CLASSES)}
    hint = nearest(config.targets[0], names)
    known = ", ".join(sorted(names)) or "none"
    excluded = f" and exclude {', '.join(config.exclude)}" if config.exclude else ""
    return f"targets: no layer matches {', '.join(config.targets)}{excluded}.{hint} Linear layers: {known}."


def _check_class(name: str, layer: nn.Module) -> None:
    if type(layer) in LINEAR_CLASSES:
        return
    if hasattr(layer, "base_layer"):
        remedy = "merge the LoRA adapters first with merge_lora()"
    elif type(layer).__name__ == "Conv1D":
        remedy = "its weight is transposed (GPT-2): take an architecture with nn.Linear, or leave it out with exclude"
    else:
        remedy = "load the model unquantized in float32, or leave the layer out with exclude"
    raise ValueError(f"targets: {name} is a {type(layer).__name__}, not torch.nn.Linear: {remedy}")


def _check_alone(model: Any, names: list[str]) -> None:
    """Refuse layers whose weight is used elsewhere too, and the output layer, which stays dense by definition."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name in names:
        layer: Any = model.get_submodule(name)
        shared = [other for other in owners[id(layer.weight)] if other != f"{name}.weight"]
        if shared:
            raise ValueError(f"targets: the weight of {name} is also {shared[0]}; leave tied layers out with exclude")
        if layer is output:
            raise ValueError(f"targets: {name} is the output layer, which stays dense; leave it out of targets")


def _with_input_scale(linear: nn.Linear) -> InputScaledLinear:
    out_features, in_features = linear.weight.shape
    factory: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    return InputScaledLinear(in_features, out_features, linear.bias is not None, **factory)


def rows_with_other_values(linear: nn.Linear, values: int = 2) -> int:
    """Return how many rows of a weight (out, in) hold more than `values` distinct values."""
    return sum(len(row.unique()) > values for row in linear.weight.detach())
