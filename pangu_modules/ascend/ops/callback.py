"""FusedOperators: a Lightning callback that lets the model use fused operators."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from pangu_modules.ascend.ops.dispatch import FusedOps, set_fused_ops
from pangu_modules.ascend.ops.fusing import fuse


class FusedOperators(Callback):
    """Calls `fuse` when the model stands on its device, before anything is computed.

    Args:
        mode: the setting `fused_ops`: ``auto``; ``on``, which raises where an operator cannot be fused; or ``off``.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: FusedOps = "auto") -> None:
        set_fused_ops(mode)
        self.mode: FusedOps = mode

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fuse."""
        set_fused_ops(self.mode)
        fuse(pl_module)

    on_validation_start = on_test_start = on_predict_start = on_fit_start
