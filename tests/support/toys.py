"""The smallest module, data, callback and plan that use the five meeting points, without any of the methods."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from datamodules import DataModule
from pangu_modules import Objective, PanguModule, Plan
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.structure import find_plan


class WidenPlan(Plan):
    """Widen the hidden layer of a ToyModule; new units start silent, so the function is unchanged."""

    kind: Literal["widen"] = "widen"
    width: PositiveInt

    def apply(self, module: Any) -> None:
        first, second = module.model[0], module.model[-1]
        if self.width < first.out_features:
            raise ValueError(f"width: {self.width} is less than the layer's {first.out_features}")
        wider = nn.Linear(first.in_features, self.width)
        after = nn.Linear(self.width, second.out_features)
        with torch.no_grad():
            after.weight.zero_()
            wider.weight[: first.out_features], wider.bias[: first.out_features] = first.weight, first.bias
            after.weight[:, : second.in_features], after.bias[:] = second.weight, second.bias
        module.model[0], module.model[-1] = wider, after


def squared_error(module: Any, batch: Any, outputs: Any) -> Tensor:
    return (outputs["prediction"] - batch["target"]).square().mean(dim=-1)


class ToyModule(PanguModule):
    """Two linear layers with dropout that fit a random linear map."""

    export_formats = ("state_dict",)

    class Config(PanguModule.Config):
        width: PositiveInt = Field(8, description="Hidden width.")
        dropout: float = Field(0.1, ge=0, lt=1, description="Dropout rate.")

    config: Config

    def __init__(self, config: Any, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        self.objectives["squared_error"] = Objective(squared_error)

    def build_model(self) -> nn.Module:
        width, features = self.config.width, self.runtime.get("features", 4)
        dropout = nn.Dropout(self.config.dropout)
        return nn.Sequential(nn.Linear(features, width), nn.ReLU(), dropout, nn.Linear(width, 2))

    def compute_outputs(self, batch: Any) -> dict[str, Tensor]:
        return {"prediction": self.model(batch["input"])}

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        return {"input": torch.zeros(batch_size, 4), "target": torch.zeros(batch_size, 2)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", squared_error(self, batch, self.compute_outputs(batch)).mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", squared_error(self, batch, self.compute_outputs(batch)).mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.compute_outputs(batch)["prediction"]

    def export(self, folder: Any, kind: str) -> None:
        folder.mkdir(parents=True)
        torch.save(self.model.state_dict(), folder / "model.pt")


class ToyDataset(torch.utils.data.Dataset):
    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.input = torch.randn(size, 4, generator=generator)
        self.target = self.input @ torch.randn(4, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.input)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": self.input[index], "target": self.target[index]}


class ToyData(DataModule):
    """A random linear map."""

    class Config(DataModule.Config):
        size: PositiveInt = Field(64, description="Training samples.")

    def setup(self, stage: str) -> None:
        self.train_dataset = ToyDataset(self.config.size, seed=1)
        self.val_dataset = ToyDataset(16, seed=2)
        self.test_dataset = ToyDataset(16, seed=3)

    def module_arguments(self) -> dict[str, Any]:
        return {"features": 4}


class Widen(RecipeCallback):
    """Apply a WidenPlan in setup, unless a resumed module already has it."""

    class Config(BaseConfig):
        width: PositiveInt = Field(16, description="Hidden width afterwards.")
        factor: float = Field(1.0, gt=0, description="Unused by the plan; here to be overridden.")

    config: Config

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and find_plan(pl_module.config.structure, "widen", self.name) is None:
            pl_module.restructure(WidenPlan(width=self.config.width, source=self.name))
