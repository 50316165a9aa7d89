"""The `plan` command: sizes and costs of a recipe's models, on the meta device, without weights or data."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pangu_modules.common.errors import UsageError
from pangu_modules.common.parameters import count_parameters
from pangu_modules.engine.errors import usage_errors
from pangu_modules.engine.own_modules import build_own, counted
from pangu_modules.engine.spec import RecipeSpec
from pangu_modules.engine.stages import BaseStage
from pangu_modules.training.module import PanguModule, batch_size

BYTES_FP32 = 4


def plan_recipe(recipe: RecipeSpec) -> dict[str, Any]:
    """Return the figures of `plan_stage`; of a pipeline those of its last stage, and all under ``stages``.

    The recipe's reference figures are under ``reference``, by the same names.
    """
    stages = {name: plan_stage(stage) for name, stage in recipe.stages.items()}
    figures = dict(list(stages.values())[-1])
    if not recipe.single:
        figures["stages"] = stages
    if recipe.reference:
        figures["reference"] = recipe.reference
    return figures


def plan_stage(stage: BaseStage) -> dict[str, Any]:
    """Return parameter counts, FLOPs of a forward pass per sample (and token of text), and bytes in fp32.

    ``training_bytes`` counts parameters, gradients and AdamW's two moments; activations are not in it. A callback that
    changes the model adds what its configuration's ``planned_figures(model)`` returns, if it has one.
    """
    module = meta_module(stage)
    model = counted(module)
    total, trainable = count_parameters(model), count_parameters(model, trainable_only=True)
    changes: dict[str, int] = {}
    for callback in stage.active_callbacks.values():
        changes |= getattr(callback, "planned_figures", lambda model: {})(model)
    active = {"active_parameters": module.active_parameters()} if hasattr(module, "active_parameters") else {}
    return {
        "model": type(module).__name__,
        "parameters": total,
        **active,
        "trainable_parameters": trainable,
        **_work(module),
        "inference_bytes": BYTES_FP32 * total,
        "training_bytes": BYTES_FP32 * (total + 3 * trainable),
        **changes,
    }


def _work(module: PanguModule) -> dict[str, Any]:
    """Return the operations of a forward pass, or under ``missing`` what a module that is none of ours would need."""
    methods = [name for name in ("example_batch", "compute_outputs") if not hasattr(module, name)]
    if methods:
        needed = " and ".join(f"{name}(...)" for name in methods)
        return {"missing": [f"no operations: {type(module).__name__} has no {needed}, as pangu_modules.PanguModule"]}
    flops, samples, tokens = forward_flops(module)
    per_token = {"forward_flops_per_token": flops // tokens} if tokens else {}
    return {"forward_flops_per_sample": flops // samples, **per_token}


def throughput_rows(recipe: RecipeSpec, hardware: str, layout: str) -> list[dict[str, Any]]:
    """Return a row per parallel layout with the throughput that the last stage's model can have on a card.

    The estimate is the module's own: what its ``plan_on_hardware(hardware, layout)`` returns.

    Args:
        recipe: the recipe.
        hardware: name of a card, or a YAML file that describes one.
        layout: ``key=value,...``; empty or ``auto`` for the fastest layouts of one node.

    Raises:
        UsageError: an unknown card or layout, one that the model does not fit, or a model without such an estimate.
    """
    module = meta_module(list(recipe.stages.values())[-1])
    estimate = getattr(module, "plan_on_hardware", None)
    if estimate is None:
        raise UsageError(f"--hardware: there is no estimate of throughput for {type(module).__name__}")
    with usage_errors("hardware"):
        return list(estimate(hardware, layout))


def meta_module(stage: BaseStage) -> PanguModule:
    """Build a stage's module on the meta device: shapes without storage."""
    arguments: dict[str, Any] = {}
    if "data" in stage.parts:
        with usage_errors("data"):
            data = stage.data.build()
        with suppress(FileNotFoundError, ImportError):  # a plan needs no data: the configuration must be enough
            arguments = getattr(data, "module_arguments", dict)()
    if "init_checkpoint" in type(stage.module).model_fields:  # its weights do not matter, its stage may not have run
        stage = stage.derive(module={"init_checkpoint": None})
    with usage_errors("module"), torch.device("meta"):
        module: PanguModule = build_own(stage, arguments)
    return module


def forward_flops(module: PanguModule) -> tuple[int, int, int]:
    """Return the floating-point operations of one forward pass over an example, its samples and tokens (0: no text).

    A multiply-add counts as two; elementwise operations are not counted.
    """
    with torch.device("meta"):
        batch = module.example_batch(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            module.eval().compute_outputs(batch)
        except RuntimeError as error:
            raise UsageError(f"module: the model cannot compute a batch of its own shapes: {error}") from error
    tokens = batch["input_ids"].numel() if "input_ids" in batch else 0
    return counter.get_total_flops(), batch_size(batch), tokens
