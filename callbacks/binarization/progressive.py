"""ProgressiveBinarization: drives the weights of a language model from full precision to exactly one bit."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from callbacks.binarization.report import BinarizationRecord
from callbacks.calibration import calibration_batches
from callbacks.measuring import on_device
from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.llm.lora import has_adapters
from pangu_modules.llm.models.coverage import say_share
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.finalize import finalize_module
from pangu_modules.llm.onebit.initialization import binary_aware_init, set_input_scales
from pangu_modules.llm.onebit.plan import BinarizePlan, binary_layers, check_weights, target_names
from pangu_modules.llm.onebit.schedule import Timeline, moment, timeline
from pangu_modules.llm.onebit.sizes import sizes_of
from pangu_modules.training.callback import RecipeCallback
from pangu_modules.training.module import PanguModule
from pangu_modules.training.structure import find_plan


class ProgressiveBinarization(RecipeCallback):
    """Replaces linear layers by binary ones in `setup`, sharpens them step by step, and leaves plain two-valued layers.

    The schedule is a function of the optimizer step (``trainer.global_step``) and the run's length. After the last
    step, before validation and checkpoints, the model is finalized: its plan says ``final``. A module that already
    holds this callback's plan, as after a resume, is left alone. Baselines are other methods of the same configuration.

    Distillation from the full-precision model is the callback `Distillation` with ``teacher="self"``, listed before
    this one; it serves all methods alike.
    """

    class Config(BaseConfig):
        """What to binarize and how, and whether to measure around it."""

        renamed = {"onebit": "method"}

        method: OneBitConfig = Field(OneBitConfig(), description="Layers, function, initialization, scales, schedule.")
        measure: bool = Field(
            True, description="Report the test loss of the dense model, of its sign, at the start, and at the end."
        )

        def planned_figures(self, model: nn.Module) -> dict[str, int]:
            """Return what `plan` shows of the binary model: weights of one bit, scales, bytes of the packed file."""
            sizes = sizes_of(model, self.method)
            return {
                "binarized_weights": sizes.binarized,
                "row_scales": sizes.row_scales,
                "packed_file_bytes": sizes.packed_bytes,
            }

    config: Config
    needs = frozenset({"whole rows"})
    provides = frozenset({"binary layers", "new shapes"})

    def __init__(self, config: Config, *, name: str = "binarization") -> None:
        super().__init__(config, name=name)
        self.record = BinarizationRecord(name)
        self._timeline: Timeline | None = None
        self._loaded: dict[str, Any] | None = None  # what the checkpoint says of the run it comes from

    # Setting up.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, initialize and replace the layers, unless the module holds this callback's plan already.

        Raises:
            TypeError: the module is not a `PanguModule`.
            ValueError: the run does not fit the schedule, something does not compose, or layers cannot be binarized.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not isinstance(pl_module, PanguModule):
            raise TypeError(f"callback {self.name!r} needs a PanguModule over a language model, e.g. CausalLM")
        refuse_precision(trainer, self.name)
        plan = find_plan(pl_module.config.structure, "binarize", self.name)
        if isinstance(plan, BinarizePlan) and plan.final:  # a finished run: Lightning will not train
            return
        self._timeline = timeline(self.config.method, trainer.estimated_stepping_batches)
        if plan is None:
            refuse_structure(pl_module, self.name)
            self._binarize(trainer, pl_module)

    def _binarize(self, trainer: Trainer, module: PanguModule) -> None:
        settings = self.config.method
        for layer in check_weights(module.model, settings):
            rank_zero_warn(f"callback {self.name!r}: {layer} has a row of zeros: its scale starts at 0")
        reached = target_names(module.model, settings)
        say_share(f"callback {self.name!r}: binarization reaches", module.model, reached)
        if self.config.measure:
            self.record.measure("dense", trainer, module.model)
        input_scales = {}
        if settings.init != "none":
            with on_device(module.model, trainer.strategy.root_device):
                batches = (
                    calibration_batches(trainer, settings.init_steps, self.name) if settings.init == "learned" else []
                )
                report = binary_aware_init(
                    module.model, batches, settings, context=trainer.precision_plugin.forward_context
                )
            self.record.init_losses, input_scales = report.losses, report.input_scales
        module.restructure(BinarizePlan(onebit=settings, source=self.name))
        set_input_scales(module.model, input_scales)

    # Training.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse plans that came after this callback's.

        Raises:
            ValueError: another callback changed the structure afterwards.
        """
        kinds = [plan.kind for plan in _structure(pl_module)]
        later = kinds[kinds.index("binarize") + 1 :]
        if later:
            raise ValueError(
                f"callback {self.name!r}: plan {later[0]!r} would change binary layers; list this callback after the "
                "one that makes that plan"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare a resumed run with the one that was interrupted; measure the start of a new one.

        Raises:
            ValueError: the model is binary already, or the interrupted run had another schedule.
        """
        plan = find_plan(_structure(pl_module), "binarize", self.name)
        if self._timeline is None or not isinstance(plan, BinarizePlan):
            raise ValueError(
                f"callback {self.name!r}: the model is binary already, and training would make it dense again; start "
                "from the checkpoint of the dense model"
            )
        if self._loaded is not None:
            self._compare(self._loaded)
        elif self.config.measure:
            module: Any = pl_module
            self._set_phase(module, trainer.global_step)
            self.record.measure("start", trainer, module.model)
            self._set_phase(module, self._timeline.total_steps, hard=True)
            self.record.measure("sign", trainer, module.model)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set t and the hard tail for this optimizer step."""
        self._set_phase(pl_module, trainer.global_step)
        assert self._timeline is not None
        self.record.take_histogram(trainer.global_step, self._timeline.total_steps, binary_layers(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the (zero) gradients of latent weights that rest: else momentum and weight decay would move them."""
        for layer in binary_layers(pl_module).values():
            if layer.weights_rest:
                layer.weight.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Finalize after the last step, so that the last validation and checkpoint see the binary model."""
        if self._timeline is not None and trainer.global_step >= self._timeline.total_steps:
            self._finalize(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize a training that ended before its last step."""
        if binary_layers(pl_module):
            rank_zero_warn(
                f"callback {self.name!r}: training ended at step {trainer.global_step} of the schedule; the model is "
                "made binary now, but the last checkpoint is not: save another, or use finalize_module"
            )
            self._finalize(trainer, pl_module)

    def _set_phase(self, module: LightningModule, step: int, hard: bool = False) -> None:
        assert self._timeline is not None
        now = moment(self.config.method, self._timeline, step)
        for layer in binary_layers(module).values():
            layer.set_phase(now.knob, hard or now.hard)

    def _finalize(self, trainer: Trainer, pl_module: Any) -> None:
        layers = binary_layers(pl_module)
        if not layers:
            return
        assert self._timeline is not None
        self.record.take_histogram(self._timeline.total_steps, self._timeline.total_steps, layers)
        if self.config.measure:
            self.record.measure("trained", trainer, pl_module.model)
        finalize_module(pl_module)
        for optimizer in trainer.optimizers:
            forget_missing_parameters(optimizer, pl_module)
        if self.config.measure:
            self.record.measure("binary", trainer, pl_module.model)
        self.record.write(trainer, pl_module.model, self.config.method, self._timeline)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the schedule, and what was measured."""
        total = self._timeline.total_steps if self._timeline is not None else 0
        return {"onebit": self.config.method.plain(), "total_steps": total, "record": self.record.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what identified the interrupted run, and take over what it measured."""
        self._loaded = state_dict
        self.record.load_state_dict(state_dict["record"])

    def _compare(self, loaded: dict[str, Any]) -> None:
        """Refuse a run whose schedule is not the interrupted one's."""
        assert self._timeline is not None
        ours = {"total_steps": self._timeline.total_steps, **self.config.method.plain()}
        theirs = {"total_steps": loaded["total_steps"], **self.config.method.current_names(loaded["onebit"])}
        for field, value in ours.items():
            if theirs.get(field) != value:
                raise ValueError(
                    f"callback {self.name!r}: resuming a run with {field}={theirs.get(field)!r} as one with "
                    f"{field}={value!r} would change its schedule midway; give the same value, or start anew"
                )


def refuse_precision(trainer: Trainer, name: str) -> None:
    """Refuse half-precision parameters, which latent weights do not go with.

    Raises:
        ValueError: the trainer has them.
    """
    if str(trainer.precision) in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"callback {name!r}: latent weights in precision={trainer.precision!r} cannot take small steps; set "
            "trainer.precision='bf16-mixed' or '32-true'"
        )


def refuse_structure(module: PanguModule, name: str) -> None:
    """Refuse adapters, and a model that was binarized before.

    Raises:
        ValueError: the module has one of these.
    """
    if has_adapters(module.model):
        raise ValueError(f"callback {name!r}: the model has LoRA adapters; merge them first with merge_lora()")
    other = next((plan for plan in module.config.structure if plan.kind == "binarize"), None)
    if other is not None:
        raise ValueError(
            f"callback {name!r}: the model was already binarized by callback {other.source!r}; start from the "
            "checkpoint of the dense model"
        )


def forget_missing_parameters(optimizer: Optimizer, module: nn.Module) -> None:
    """Remove parameters that the module no longer has from an optimizer, so that its state fits the finished module."""
    present = set(module.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in present:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if parameter in present]


def _structure(module: Any) -> Any:
    return module.config.structure
