"""ExpertLoad: how evenly a mixture's experts and devices are loaded, in the log and in the run's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, PositiveInt
from torch import Tensor

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.moge.auxiliary_loss import padding_mask
from pangu_modules.llm.moge.block import MoGEBlock, moge_blocks, recorded_routings
from pangu_modules.llm.moge.statistics import (
    LoadConfig,
    LoadMeter,
    LoadSummary,
    check_devices,
    coefficient_of_variation,
    dead_experts,
    max_over_mean,
)
from pangu_modules.report.parts import add_figure, add_table
from pangu_modules.training.callback import RecipeCallback, run_folder
from pangu_modules.training.objectives import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExpertLoad(RecipeCallback):
    """Logs the load of a model's mixtures and adds tables and a heat map to the report; it changes nothing.

    Logged under ``train/load/`` every few steps, of one batch, and under ``val/load/`` and ``test/load/``, of a whole
    evaluation over all ranks: ``cv`` and ``max_over_mean`` of the tokens per expert (means over layers),
    ``dead_experts`` (sum over layers), and for each batch size ``imbalance_<tokens>``, the imbalance score of
    arXiv:2505.21411, section 2, and ``device_max_over_mean_<tokens>``. Padding is left out.
    """

    class Config(BaseConfig):
        """What is measured, and how often."""

        renamed = {"token_counts": "method.token_counts", "num_devices": "method.num_devices"}

        method: LoadConfig = Field(LoadConfig(), description="Batch sizes and devices of the measurement.")
        every_n_steps: PositiveInt = Field(50, description="Optimizer steps between two measurements in training.")

    config: Config

    def __init__(self, config: Config, *, name: str = "load") -> None:
        super().__init__(config, name=name)
        self.summary: LoadSummary | None = None  # of the last evaluation
        self._meter: LoadMeter | None = None
        self._measured_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a mixture, and that the devices divide its experts.

        Raises:
            ValueError: there is none, or they do not.
        """
        super().setup(trainer, pl_module, stage)
        block = first_block(pl_module, self.name)
        check_devices(block.config.num_experts, self._devices(block))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the load of this rank's batch, at most once a step."""
        step = trainer.global_step
        if step % self.config.every_n_steps or step == self._measured_step:
            return
        self._measured_step = step
        meter = self._new_meter(pl_module)
        meter.update(selected_experts(pl_module, batch))
        self._log(pl_module, "train", meter.summary())

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to add up."""
        self._meter = self._new_meter(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        assert self._meter is not None
        self._meter.update(selected_experts(pl_module, batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the load of the evaluation."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to add up."""
        self._meter = self._new_meter(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the load of the test and add it to the report: the test ends a recipe's run."""
        summary = self._finish(trainer, pl_module, "test")
        folder = run_folder(trainer) if trainer.is_global_zero else None
        if summary is None or folder is None:
            return
        add_table(folder, f"{self.name}-1-layers", f"{self.name}: experts on the test set", layer_rows(summary))
        devices = self._devices(first_block(pl_module, self.name))
        title = f"{self.name}: imbalance over {devices} devices on the test set"
        add_table(folder, f"{self.name}-2-imbalance", title, imbalance_rows(summary))
        caption = "Load of each expert on the test set, as a multiple of an even load"
        add_figure(folder, f"{self.name}-3-map", caption, draw_load(summary.counts))

    def _finish(self, trainer: Trainer, module: LightningModule, stage: str) -> LoadSummary | None:
        """Add up all ranks and log; a rank that saw no batch takes part."""
        meter, self._meter = self._meter, None
        assert meter is not None
        totals = meter.finish()
        if totals is None:
            blocks = len(list(moge_blocks(module)))
            width = meter.num_experts + 4 * len(meter.token_counts)
            totals = torch.zeros(blocks, width, dtype=torch.float64, device=module.device)
        totals = trainer.strategy.reduce(totals, reduce_op="sum")
        self.summary = meter.summary(totals) if bool(totals.any()) else None
        if self.summary is not None:
            self._log(module, stage, self.summary)
        return self.summary

    def _log(self, module: LightningModule, stage: str, summary: LoadSummary) -> None:
        # Totals are those of all ranks already; sync_dist averages equal numbers, and without it Lightning warns.
        values = {f"{stage}/{self.name}/{name}": value for name, value in summary.scalars().items()}
        module.log_dict(values, sync_dist=True)

    def _new_meter(self, module: LightningModule) -> LoadMeter:
        block = first_block(module, self.name)
        return LoadMeter(block.config.num_experts, self._devices(block), self.config.method.token_counts)

    def _devices(self, block: MoGEBlock) -> int:
        return block.config.num_groups if self.config.method.num_devices is None else self.config.method.num_devices


def first_block(module: LightningModule, name: str) -> MoGEBlock:
    """Return the model's first mixture; `name` is the callback's, for the message where there is none."""
    for _, block in moge_blocks(module):
        return block
    raise ValueError(
        f"callback {name!r}: the model has no mixture of experts, so there is no load to look at; remove the callback, "
        "or train architecture 'PanguProMoE'"
    )


@torch.no_grad()
def selected_experts(module: LightningModule, batch: Batch) -> Tensor:
    """Return the experts that the last forward pass chose in each layer, (L, T, K), without those of padding."""
    chosen = torch.stack([routing.expert_ids for routing in recorded_routings(module)])
    mask = padding_mask(batch)
    return chosen if mask is None else chosen[:, mask != 0]


def layer_rows(summary: LoadSummary) -> list[dict[str, Any]]:
    """Return the table of layers: how evenly the experts of each are loaded."""
    rows = []
    for layer, counts in enumerate(summary.counts):
        rows.append(
            {
                "layer": layer,
                "load, std / mean": round(float(coefficient_of_variation(counts)), 4),
                "load, max / mean": round(float(max_over_mean(counts)), 4),
                "dead experts": f"{int(dead_experts(counts))} of {len(counts)}",
            }
        )
    return rows


def imbalance_rows(summary: LoadSummary) -> list[dict[str, Any]]:
    """Return the table of batch sizes, means over layers and batches."""
    return [
        {
            "tokens": tokens,
            "imbalance score": round(float(scores.mean()), 5),
            "batches in balance, %": round(100 * float(summary.balanced[tokens].mean()), 2),
            "most loaded device / mean": round(float(summary.device_max_over_mean[tokens].mean()), 4),
        }
        for tokens, scores in summary.imbalance.items()
    ]


def draw_load(counts: Tensor) -> Figure:
    """Draw the load of each expert (L, N) as a multiple of an even load, one row a layer."""
    from matplotlib.figure import Figure

    share = (counts.double() / counts.double().mean(-1, keepdim=True).clamp(min=1e-9)).numpy()
    layers, experts = share.shape
    figure = Figure(figsize=(2.0 + min(8.0, 0.14 * experts), 1.4 + 0.18 * layers), layout="constrained")
    panel = figure.subplots()
    # 1 is an even load and white: red experts get too much, blue ones too little.
    image = panel.imshow(share, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest")
    panel.set_xlabel("expert")
    panel.set_ylabel("layer")
    step = max(1, layers // 15)
    panel.set_yticks(range(0, layers, step))
    figure.colorbar(image, ax=panel, label="load / even load", extend="max")
    return figure
