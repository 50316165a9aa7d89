"""A Trainer that writes and prints nothing, and a callback that breaks it off."""

from __future__ import annotations

import lightning
from lightning.pytorch import Callback


def quiet_trainer(folder, callbacks, **arguments):
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **arguments,
    )


class StopAt(Callback):
    """Break off after a batch, with a checkpoint."""

    def __init__(self, batch, path):
        self.batch, self.path, self.count = batch, path, 0

    def on_train_batch_end(self, trainer, *_):
        self.count += 1
        if self.count == self.batch:
            trainer.save_checkpoint(self.path)
            raise ZeroDivisionError
