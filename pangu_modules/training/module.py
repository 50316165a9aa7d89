"""PanguModule: the base of our LightningModules, where methods meet training.

It holds the configuration with the plans of structure, the objectives, and the rules for checkpoints: a checkpoint
rebuilds base model and plans from its own hyper-parameters, with `weights_only=True`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from pydantic import Field
from torch import Tensor, nn

from pangu_modules.common.checkpoints import check_checkpoint
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable, caller_only
from pangu_modules.common.parameters import count_parameters
from pangu_modules.common.weight_names import without_wrappers
from pangu_modules.training import objectives as objective_functions
from pangu_modules.training.objectives import Batch, Objective, Outputs, TokenNormaliser
from pangu_modules.training.optim import OptimizerConfig, build_optimizer
from pangu_modules.training.structure import Plan, Structure, describe, find_plan, plan_from


class PanguModule(Configurable, LightningModule):
    """A model with its configuration, plans and objectives.

    A subclass implements `build_model` and `compute_outputs`, fills `objectives` in its constructor, and may return
    plans of its own from `initial_plans`. The model is `self.model`.

    Args:
        config: the configuration, or its plain data as stored in a checkpoint (see `from_stored`).
        **runtime: plain values known only at run time (e.g. ``num_classes``); they are stored in checkpoints.
    """

    class Config(BaseConfig):
        """Fields every module has."""

        optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimizer and learning-rate schedule.")
        init_checkpoint: str | None = Field(
            None,
            description="Checkpoint whose structure and weights training starts from (set by start_from).",
            json_schema_extra=caller_only(),
        )
        structure: Structure = Field((), description="Plans applied to the base model, in order.")

    config: Config
    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")  # metric and direction by which a checkpoint is best
    export_formats: ClassVar[tuple[str, ...]] = ()  # the first is the default
    export_options: ClassVar[tuple[str, ...]] = ()  # keywords of `export` that a command line may give
    # Config fields that neither shapes, weights nor the loss depend on: with a checkpoint, the recipe's values count.
    free_fields: ClassVar[tuple[str, ...]] = ()
    # Arguments of the constructor that a checkpoint may not bring, as the fields marked `caller_only`.
    caller_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config | Mapping[str, Any], **runtime: Any) -> None:
        super().__init__()
        self.config = config if isinstance(config, BaseConfig) else self.stored_config(config)
        self.runtime = runtime
        self.objectives: dict[str, Objective] = {}
        self._normaliser = TokenNormaliser()
        self._micro_batch = 0  # number of the batch in its epoch
        # 1. Read the checkpoint to start from, if any, before building: its plans become this module's structure.
        start = self._read_start()
        # 2. Build the base model. A checkpoint's configuration describes the same base, whatever plans came later.
        self.model: nn.Module = self.build_model()
        # 3. Apply the recorded plans in their order: each was made for the shapes that the one before it has left.
        for plan in self.config.structure:
            plan.apply(self)
        # 4. Only now has the model the shapes of the checkpoint's tensors.
        if start is not None:
            load_weights(self, start, source=str(self.config.init_checkpoint))
        # 5. Forget where the weights came from: this module's own checkpoints hold them, and load without that place.
        self.config = self.config.derive(**self.fields_spent_by_building())
        # 6. Plans that the configuration itself asks for act on the loaded weights (an expansion copies them). A module
        #    rebuilt from its own checkpoint has them in `structure` already, applied in step 3.
        for plan in self.initial_plans():
            if find_plan(self.config.structure, plan.kind, plan.source) is None:
                self.restructure(plan)
        self._record_config()

    # What a subclass provides.

    def build_model(self) -> nn.Module:
        """Return the base model, before any plan."""
        raise TypeError(f"{type(self).__name__} does not define build_model()")

    def compute_outputs(self, batch: Batch) -> Outputs:
        """Run the model on a batch; objectives receive what this returns."""
        raise TypeError(f"{type(self).__name__} does not define compute_outputs(batch)")

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Return a batch of zeros on the current device, from which `plan` counts operations."""
        raise TypeError(f"{type(self).__name__} does not define example_batch(batch_size)")

    def active_parameters(self) -> int:
        """Return the parameters that one sample or token uses: all of them, unless some are experts."""
        return count_parameters(self.model)

    def export(self, folder: Path, kind: str) -> None:
        """Write the model to `folder` in one of `export_formats`."""
        raise TypeError(f"{type(self).__name__} does not define export(folder, kind)")

    def initial_plans(self) -> Sequence[Plan]:
        """Return the plans that the configuration itself asks for."""
        return ()

    def runtime_of_start(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a module takes, beside weights, from the hyper-parameters of the checkpoint it starts from."""
        return {}

    def fields_spent_by_building(self) -> dict[str, Any]:
        """Return the config fields that only matter while building, with the value to store: weights come later."""
        return {"init_checkpoint": None}

    # Structure.

    def restructure(self, plan: Plan) -> None:
        """Apply a plan to the model and append it to ``config.structure``; must happen before optimizers exist.

        Raises:
            RuntimeError: optimizers exist already: they would go on training removed tensors.
        """
        if self._trainer is not None and self.trainer.optimizers:
            raise RuntimeError(
                f"plan {plan.kind!r} arrives after the optimizers exist; apply it in a callback's setup()"
            )
        plan.apply(self)
        self.config = self.config.derive(structure=(*self.config.structure, plan))
        self._record_config()

    def replace_structure(self, plans: Sequence[Plan]) -> None:
        """Record `plans` in place of those there are; the model has their shapes already.

        This is how plans are taken back (adapters that are merged) or marked as done (binary layers that are final).
        """
        self.config = self.config.derive(structure=tuple(plans))
        self._record_config()

    def _record_config(self) -> None:
        self.save_hyperparameters({"config": self.config.plain(), **self.runtime}, logger=False)

    def _read_start(self) -> dict[str, Any] | None:
        """Read `init_checkpoint` and take over its structure; the state dict is loaded after the plans."""
        path = self.config.init_checkpoint
        if path is None:
            return None
        if self.config.structure:
            raise ValueError("init_checkpoint brings its own structure: leave `structure` empty, or the checkpoint out")
        if not Path(path).is_file():
            raise ValueError(f"init_checkpoint: no file {path!r}; give a .ckpt file written by fit")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        structure = checkpoint.get("hyper_parameters", {}).get("config", {}).get("structure", [])
        self.config = self.config.derive(structure=tuple(plan_from(plan) for plan in structure))
        self.runtime = {**self.runtime, **self.runtime_of_start(checkpoint.get("hyper_parameters", {}))}
        state: dict[str, Any] = checkpoint["state_dict"]
        return state

    # Training.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the objectives and log each by its name."""
        found = objective_functions.evaluate(self.objectives, self, batch, self.compute_outputs(batch))
        if len(found.values) > 1:
            values = {f"train/{name}": value for name, value in found.values.items()}
            self.log_dict(values, batch_size=batch_size(batch))
        self.log("train/loss", found.total.detach(), prog_bar=True, batch_size=batch_size(batch))
        self._micro_batch = batch_idx
        accumulated = 1 if self._trainer is None else self.trainer.accumulate_grad_batches
        return self._normaliser.scaled(found, begins=batch_idx % accumulated == 0)

    def on_after_backward(self) -> None:
        """Divide the gradients of a step whose sequences count by tokens, once its last micro-batch is done."""
        accumulated, done = self.trainer.accumulate_grad_batches, self._micro_batch + 1
        is_last = self.trainer.is_last_batch or done == self.trainer.num_training_batches
        if accumulated == 1 or not (done % accumulated == 0 or is_last):
            return
        factor = self._normaliser.gradient_factor(accumulated)
        if factor != 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its per-step schedule over all optimizer steps of the run."""
        total = self.trainer.estimated_stepping_batches
        optimizer, scheduler = build_optimizer(self, self.config.optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Checkpoints.

    @classmethod
    def stored_config(cls, stored: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
        """Return the configuration that a checkpoint holds: without what only the caller may say, with what is `given`.

        Raises:
            ValueError: the checkpoint is of no use without what only the caller may say.
        """
        return cls.Config.model_validate({**cls.Config.from_stored(stored), **(given or {})})

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], **given: Any) -> Self:
        """Build what a checkpoint's hyper-parameters describe; its weights are still to be loaded.

        A checkpoint may come from anybody, so it opens no file, asks no server and runs no code that it names.

        Args:
            stored: ``checkpoint["hyper_parameters"]``.
            **given: fields of the configuration and arguments of the constructor in place of the stored ones.

        Raises:
            ValueError: there is no configuration, or it is of no use without what only the caller may say.
        """
        if not isinstance(stored.get("config"), Mapping):
            raise ValueError("the checkpoint holds no configuration: give a .ckpt file that fit has written")
        fields = {name: value for name, value in given.items() if name in cls.Config.model_fields}
        parameters = inspect.signature(cls.__init__).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        runtime = {
            name: value
            for name, value in stored.items()
            if (takes_all or name in parameters) and name not in ("config", *cls.caller_arguments) and name[0] != "_"
        }
        runtime |= {name: value for name, value in given.items() if name not in fields}
        return cls(cls.stored_config(stored["config"], fields), **runtime)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **given: Any,
    ) -> Self:
        """Build the module that a checkpoint describes and load its weights, as `from_stored` says.

        Lightning's own would call the class and the function that a checkpoint names.

        Args:
            checkpoint_path: file or address.
            map_location: as of ``torch.load``.
            hparams_file: not used here: the configuration is in the checkpoint.
            strict: whether the weights must be all there.
            weights_only: False unpickles anything, so that a checkpoint of a stranger runs his code; never needed here.
            **given: see `from_stored`.

        Raises:
            ValueError: see `from_stored`; or the file is damaged, or its weights do not fit.
        """
        if hparams_file is not None:
            raise ValueError("hparams_file: a checkpoint holds its configuration; give other values as keywords")
        if Path(str(checkpoint_path)).is_file():
            check_checkpoint(checkpoint_path)
        reader = TorchCheckpointIO()
        options = {} if map_location is None else {"map_location": map_location}
        checkpoint = reader.load_checkpoint(checkpoint_path, weights_only=weights_only is not False, **options)
        module = cls.from_stored(checkpoint.get("hyper_parameters", {}), **given)
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict)
        tensors = (value for value in checkpoint["state_dict"].values() if isinstance(value, Tensor))
        return module.to(next((tensor.device for tensor in tensors), torch.device("cpu")))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose structure is not this module's, before any tensor is copied."""
        stored = checkpoint.get("hyper_parameters", {}).get("config", {}).get("structure", [])
        ours = [plan.plain() for plan in self.config.structure]
        theirs = [plan_from(plan).plain() for plan in stored]
        if ours != theirs:
            raise ValueError(
                f"the checkpoint's structure is [{describe(theirs)}], this module's is [{describe(ours)}]: build the "
                f"module from the checkpoint with {type(self).__name__}.load_from_checkpoint(path, weights_only=True), "
                "or pass ckpt_path to the recipe, which does so"
            )


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `module`, all of it, or raise a ValueError that lists what does not fit."""
    own = module.state_dict()
    state = without_wrappers(state, own)
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{title}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})"
        for title, names in (("missing", missing), ("unexpected", extra), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model it should start from: {'; '.join(problems)}")
    module.load_state_dict(state)


def batch_size(batch: Batch) -> int:
    """Return the number of sequences or images in a batch: the length of its first tensor."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim > 0)
