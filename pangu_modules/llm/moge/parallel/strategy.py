"""ExpertParallelStrategy: Lightning's ModelParallelStrategy for models with mixtures of experts.

All processes are data-parallel. Those of one expert-parallel group hold the experts between them, and tokens travel
inside the group; all other parameters are sharded over the same group by FSDP2. With fewer than all processes in a
group there are replicas of it, whose gradients are averaged (hybrid sharding). Names and shapes of the state dict are
those of one process, so checkpoints do not depend on the number of processes.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from pydantic import Field, PositiveInt
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

from pangu_modules.common.config import Config
from pangu_modules.llm.moge.parallel.experts import expert_mesh, parallelize


class ExpertParallelConfig(Config):
    """How experts are spread over processes."""

    ep_size: PositiveInt | None = Field(
        None, description="Processes that share the experts; divides num_groups (M) and their number; empty: all."
    )
    equal_tokens: bool = Field(
        False,
        description="Promise that all processes have equally many tokens in every batch: then MoGE exchanges no sizes. "
        "Otherwise each layer exchanges one number per process.",
    )
    save_distributed_checkpoint: bool = Field(
        False,
        description="Each process writes its part into a folder, instead of all into one file that rank 0 gathers.",
    )


class ExpertParallelStrategy(ModelParallelStrategy):
    """Trains ``module.model`` with its experts spread over processes; the arguments are `ExpertParallelConfig`'s.

    In a recipe: ``trainer={"strategy": {"class_path": "pangu_modules.ExpertParallelStrategy", "init_args": {"ep_size":
    8}}}``. A checkpoint of one file continues on any number of processes, under any strategy that reads whole tensors;
    a folder continues under this strategy, on any number of processes.

    Each process builds the whole model before it keeps its part. All processes must run the model equally often:
    `predict` with generation of different lengths is not for this strategy. Export from a checkpoint of one file.

    Args:
        ep_size: see `ExpertParallelConfig`.
        equal_tokens: see `ExpertParallelConfig`.
        save_distributed_checkpoint: see `ExpertParallelConfig`.
        **options: of Lightning's ModelParallelStrategy, e.g. ``process_group_backend``.

    Raises:
        ValueError: a value is out of range; while the Trainer sets up: the model has no mixture, or its sizes or the
            number of processes do not allow `ep_size`.
    """

    def __init__(
        self,
        ep_size: int | None = None,
        equal_tokens: bool = False,
        save_distributed_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **options)
        self.config = ExpertParallelConfig(
            ep_size=ep_size, equal_tokens=equal_tokens, save_distributed_checkpoint=save_distributed_checkpoint
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process reads data of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def setup(self, trainer: Trainer) -> None:
        """Spread the model, then go on as every strategy does.

        The way leads past ModelParallelStrategy's own setup, which wants the module to spread itself in
        `configure_model`; callbacks may change the model's structure until now.
        """
        assert self.model is not None
        # Type and device first: parameters of a sharded model cannot be replaced.
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        model = getattr(self.lightning_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError("ExpertParallelStrategy spreads module.model, which this LightningModule does not have")
        mesh = expert_mesh(self.config.ep_size, self.root_device.type)
        parallelize(model, mesh, equal_tokens=self.config.equal_tokens)
        super(ModelParallelStrategy, self).setup(trainer)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load model and optimizers from a file or a folder and return the rest of the checkpoint.

        Files are read here: ModelParallelStrategy takes the optimizer's parameters to be in the model's order, which
        those of a one-process run are not where there are several parameter groups.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only=weights_only)
        module = self.lightning_module
        assert module is not None
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            set_optimizer_state_dict(module, optimizer, state_by_name(state, optimizer, module), options=options)
        return checkpoint


def state_by_name(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state dict with parameters' names in place of their numbers.

    Args:
        state: from an optimizer with the same parameter groups; only the order inside groups counts, as in PyTorch.
        optimizer: the optimizer that will receive it.
        module: the owner of the parameters.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    by_number = {number: names[parameter] for number, parameter in zip(numbers, parameters, strict=True)}
    groups = [{**group, "params": [by_number[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {by_number[number]: value for number, value in state["state"].items()}, "param_groups": groups}
