"""LoRA: low-rank adapters through peft, as a plan of structure that can be applied, saved, reloaded and merged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from pangu_modules.common.config import Config
from pangu_modules.common.names import nearest
from pangu_modules.llm.models.coverage import say_share
from pangu_modules.llm.models.decoder import LINEAR_LAYERS
from pangu_modules.training.module import PanguModule
from pangu_modules.training.structure import Plan


class LoRAConfig(Config):
    """Shape of the adapters: ``y = W x + alpha / rank * B A x`` (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""

    rank: PositiveInt = Field(8, description="Rank r of the adapters.")
    alpha: PositiveFloat = Field(16.0, description="Scale of the adapters: their output is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: tuple[str, ...] = Field(LINEAR_LAYERS, min_length=1, description="Names of the linear layers adapted.")


class LoRAPlan(Plan):
    """Adapters on the linear layers named; all other parameters are frozen."""

    kind: Literal["lora"] = "lora"
    lora: LoRAConfig = Field(LoRAConfig(), description="Shape of the adapters.")

    def apply(self, module: PanguModule) -> None:  # type: ignore[override]
        """Insert adapters into ``module.model`` in place; they start as zero, so outputs do not change.

        Raises:
            ValueError: no layer has one of the names, or there are adapters already.
        """
        from peft import LoraConfig, inject_adapter_in_model

        _check_targets(module.model, self.lora.targets)
        names = [name for name, _ in module.model.named_modules()]
        adapted = {name for name in names if any(_matches(name, target) for target in self.lora.targets)}
        say_share("lora.targets: the adapters reach", module.model, adapted)
        config = LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,  # type: ignore[arg-type]  # peft divides it by the rank, whole or not
            lora_dropout=self.lora.dropout,
            target_modules=list(self.lora.targets),
        )
        inject_adapter_in_model(config, module.model)


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model holds LoRA adapters that are not merged."""
    return hasattr(model, "peft_config")


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights they adapt, remove them, and make all parameters trainable again.

    Raises:
        ValueError: the model has no adapters.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    if not adapted:
        raise ValueError("the model has no LoRA adapters to merge")
    for name, layer in adapted:
        layer.merge(safe_merge=True)  # raises if the sum is not finite
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    if has_adapters(model):
        raise ValueError("the model has LoRA adapters already: merge them first with merge_lora()")
    names = {name.rpartition(".")[2]: name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        if not any(_matches(name, target) for name, _ in model.named_modules()):
            known = ", ".join(sorted(names))
            raise ValueError(f"lora.targets: no layer {target!r}.{nearest(target, names)} Linear layers: {known}.")
    _refuse_shared(model, targets)


def _refuse_shared(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Refuse adapters on a weight that another part of the model uses too: merging them would change both.

    Raises:
        ValueError: such as the head of a model whose embedding is tied to it.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and any(_matches(name, target) for target in targets):
            others = [owner for owner in owners[id(weight)] if owner != f"{name}.weight"]
            if others:
                raise ValueError(
                    f"lora.targets: {name} shares its weight with {others[0]}, which merged adapters would change too: "
                    f"leave {name.rpartition('.')[2]!r} out of the targets"
                )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
