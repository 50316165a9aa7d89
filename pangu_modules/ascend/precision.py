"""Precision on NPUs: Lightning's plugins say "cuda" wherever they mean an accelerator, and then do nothing here."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.fabric.plugins import precision as fabric_plugins
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import precision as plugins
from torch.amp import GradScaler

NAMES = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
"""What ``precision=`` may say on an NPU, in Lightning's words."""
ALIASES: dict[Any, str] = {
    32: "32-true",
    "32": "32-true",
    16: "16-mixed",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    None: "32-true",
}
_REMEDY = f"give precision= one of {', '.join(NAMES)}"


class NPUMixedPrecision(plugins.MixedPrecision):
    """Autocast on the NPU, with a gradient scaler for float16; NPU strategies make it of ``precision="bf16-mixed"``.

    Args:
        precision: "bf16-mixed" or "16-mixed".
        scaler: of "16-mixed" only; by default one with torch's settings.
    """

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], scaler: GradScaler | None = None) -> None:
        super().__init__(precision, "npu", _scaler(precision, scaler))


class NPUFabricMixedPrecision(fabric_plugins.MixedPrecision):
    """The same for Fabric."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], scaler: GradScaler | None = None) -> None:
        super().__init__(precision, "npu", _scaler(precision, scaler))


class NPUFSDPPrecision(plugins.FSDPPrecision):
    """Precision of sharded modules: mixed precision is FSDP's own, with autocast on the NPU around the rest."""

    def __init__(self, precision: Any) -> None:
        super().__init__(precision)
        if precision == "16-mixed":
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            self.scaler = ShardedGradScaler(device="npu")

    def forward_context(self) -> Any:
        """Return autocast for mixed precision, Lightning's own context otherwise."""
        if "mixed" in self.precision:
            return torch.autocast("npu", dtype=torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16)
        return super().forward_context()


def _scaler(precision: str, given: GradScaler | None) -> GradScaler | None:
    return GradScaler("npu") if given is None and precision == "16-mixed" else given


def check_name(precision: Any) -> str:
    """Return a precision's full name, if an NPU knows it.

    Raises:
        MisconfigurationException: it does not.
    """
    name = ALIASES.get(precision, precision)
    if name not in NAMES:
        raise MisconfigurationException(f"precision={precision!r} does not exist on NPUs: {_REMEDY}")
    return str(name)


def on_npu(plugin: plugins.Precision | None) -> plugins.Precision | None:
    """Return a Trainer's precision plugin as one for the NPU; most are for any device.

    Raises:
        MisconfigurationException: it computes on other devices only.
    """
    if type(plugin) is plugins.MixedPrecision and plugin.device != "npu":
        name: Any = plugin.precision
        return NPUMixedPrecision(name, _kept(plugin.scaler))
    if type(plugin) is plugins.FSDPPrecision:
        return NPUFSDPPrecision(plugin.precision)
    check_plugin(plugin)
    return plugin


def on_npu_fabric(plugin: fabric_plugins.Precision | None) -> fabric_plugins.Precision | None:
    """Return Fabric's precision plugin as one for the NPU; see `on_npu`."""
    if type(plugin) is fabric_plugins.MixedPrecision and plugin.device != "npu":
        name: Any = plugin.precision
        return NPUFabricMixedPrecision(name, _kept(plugin.scaler))
    check_plugin(plugin)
    return plugin


def _kept(scaler: Any) -> Any:
    """Return a scaler of the user's own; Lightning's for CUDA has switched itself off, as there is no CUDA."""
    return scaler if scaler is not None and scaler.is_enabled() else None


def check_plugin(plugin: Any) -> None:
    """Raise unless a precision plugin works on NPUs.

    Raises:
        MisconfigurationException: it does nothing there, so that training would be in float32, unseen; or it uses what
            NPUs do not have.
    """
    elsewhere = ("DoublePrecision", "TransformerEnginePrecision", "BitsandbytesPrecision", "XLAPrecision")
    names = {kind.__name__ for kind in type(plugin).__mro__}
    if names.intersection(elsewhere):
        raise MisconfigurationException(f"{type(plugin).__name__} does not exist on NPUs: {_REMEDY}")
    device = getattr(plugin, "device", "npu")
    if device != "npu" or ("FSDPPrecision" in names and not isinstance(plugin, NPUFSDPPrecision)):
        raise MisconfigurationException(
            f"{type(plugin).__name__} works on {device if device != 'npu' else 'cuda'}, so that an NPU would train in "
            'float32: give an NPU strategy (single_npu, ddp_npu ...) and precision="bf16-mixed", or '
            'plugins=NPUMixedPrecision("bf16-mixed")'
        )
