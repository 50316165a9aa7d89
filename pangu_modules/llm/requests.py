"""What a model's own configuration asks of its training: done by its code, added here as an objective, or said."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import Tensor

from pangu_modules.llm.models.fields import fields_read
from pangu_modules.training.objectives import Batch, Objective, Outputs

OF_TRAINING = re.compile(r"drop|jitter|label_smoothing|gradient_checkpointing|_loss_coef")
ROUTER_LOSS = "router_balance"


def requested_objectives(config: Any) -> dict[str, Objective]:
    """Return the losses that a model's configuration asks for beside language modelling; what is not done is said.

    A mixture with ``output_router_logits`` gets its ``router_aux_loss_coef`` times transformers' balancing loss.

    Args:
        config: a transformers configuration.
    """
    coefficient = getattr(config, "router_aux_loss_coef", None) or 0.0
    wanted = bool(getattr(config, "output_router_logits", False)) and coefficient > 0
    ignored = [
        f"{name}={value}"
        for name, value in config.to_dict().items()
        if OF_TRAINING.search(name) and isinstance(value, bool | int | float) and value and not _is_done(config, name)
    ]
    if ignored:
        warnings.warn(
            f"the model's configuration has {', '.join(ignored)}, which its code in transformers does not use in "
            "training: set what you need of it in the recipe",
            stacklevel=2,
        )
    return {ROUTER_LOSS: Objective(_router_loss, weight=coefficient)} if wanted else {}


def _is_done(config: Any, name: str) -> bool:
    if name == "router_aux_loss_coef" and hasattr(config, "output_router_logits"):
        return bool(config.output_router_logits)
    return name in fields_read(config.model_type)


def _router_loss(module: Any, batch: Batch, outputs: Outputs) -> Tensor:
    """Return transformers' balancing loss of the batch, the same for each sequence, (batch,)."""
    loss: Tensor = outputs["router_loss"]
    return loss.expand(len(batch["input_ids"]))
