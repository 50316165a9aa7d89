"""What DWM refuses before training starts, and the sizes it takes from the trained module."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from pangu_modules.common.errors import UsageError
from pangu_modules.llm.weighting.features import FeatureReader
from pangu_modules.llm.weighting.hypergradient import Engine, check_engine
from pangu_modules.llm.weighting.model import DataWeightingModel
from pangu_modules.llm.weighting.protocol import LossesOf, check_protocol
from pangu_modules.training.processes import Processes


def check_run(trainer: Trainer, module: LightningModule, engine: Engine | None) -> None:
    """Refuse what cannot work.

    Args:
        trainer: the trainer.
        module: the module to be trained.
        engine: engine of the updates; None where there are none.

    Raises:
        TypeError: the module offers no losses per sequence.
        ValueError: the engine cannot serve the module.
    """
    check_protocol(module)
    if engine is None:
        return
    losses_of = LossesOf(module)
    trained = {name: value for name, value in losses_of.named_parameters() if value.requires_grad}
    check_engine(engine, losses_of, trained, Processes(world_size=trainer.world_size))


def complete_config(
    config: DataWeightingModel.Config, module: Any, reader: FeatureReader | None
) -> DataWeightingModel.Config:
    """Return the weighting model's configuration with the sizes of the trained module.

    Raises:
        UsageError: a size is unknown, or the configuration is for another vocabulary or hidden size.
    """
    if reader is not None:
        if config.feature_size not in (None, reader.size):
            raise UsageError(
                f"encoder={config.encoder!r}: the weighting model knows {config.feature_size} features, this model "
                f"gives {reader.size}: hidden states of one model mean nothing to another; for transfer set "
                "keep_encoder=true in the run that learns, or take encoder='losses'"
            )
        return config.derive(feature_size=reader.size)
    if config.encoder != "tiny":
        return config
    vocabulary = getattr(getattr(getattr(module, "model", None), "config", None), "vocab_size", None)
    if config.vocab_size is None and vocabulary is None:
        raise UsageError(f"{type(module).__name__} tells no vocabulary (model.config.vocab_size): set model.vocab_size")
    if config.vocab_size is not None and vocabulary is not None and config.vocab_size < vocabulary:
        raise UsageError(
            f"encoder='tiny': the weighting model knows {config.vocab_size} tokens, the module {vocabulary}: it needs "
            "the tokenizer it was made with"
        )
    return config.derive(vocab_size=config.vocab_size or vocabulary)


def steps_of(trainer: Trainer) -> int:
    """Return the optimizer steps of the whole run.

    Raises:
        UsageError: the trainer does not know them.
    """
    total = float(trainer.estimated_stepping_batches)
    if math.isinf(total) or total < 1:
        raise UsageError("the rounds of DWM need the number of training steps: set trainer.max_steps or max_epochs")
    return int(total)
