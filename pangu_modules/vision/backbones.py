"""Building timm models from a configuration: names, local weights, class and channel counts, and errors that help."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_modules.common.names import nearest
from pangu_modules.common.weight_names import unwrapped


def create_backbone(backbone: str, *, pretrained: bool | str, **arguments: Any) -> nn.Module:
    """Create a timm model.

    On the meta device (``with torch.device("meta")``) `pretrained` is ignored: no file is read, nothing is downloaded.

    Args:
        backbone: a timm name, ``hf-hub:...``, or a folder that `timm` format was exported to.
        pretrained: True for timm's weights of that name (from the hub, or the folder), or a local file: .safetensors,
            or .pth read with ``weights_only=True``. A head with another number of classes starts anew.
        **arguments: passed to ``timm.create_model``; None leaves timm's default.

    Raises:
        ValueError: timm does not know the name or refuses an argument, has no weights of that name or they do not fit,
            or the file is a Lightning checkpoint.
        FileNotFoundError: the weights cannot be read or fetched.
    """
    import timm

    name = f"local-dir:{backbone}" if Path(backbone).is_dir() else backbone
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"backbone: timm has no model {backbone!r}.{nearest(backbone, timm.list_models())}")
    if torch.get_default_device().type == "meta":
        pretrained = False
    overlay = _overlay(name, pretrained) if isinstance(pretrained, str) else None
    try:
        _check_all_fit(name, overlay, arguments)
        model: nn.Module = timm.create_model(name, bool(pretrained), pretrained_cfg_overlay=overlay, **arguments)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"model_args: {backbone} cannot be created with {arguments}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"pretrained={pretrained}: the weights of {backbone} cannot be fetched ({error}); give a local file with "
            "pretrained=PATH, or train from scratch with pretrained=False"
        ) from error
    except RuntimeError as error:
        if not pretrained:
            raise ValueError(f"model_args: {backbone} cannot be created with {arguments}: {error}") from error
        raise ValueError(
            f"pretrained={pretrained}: no weights that fit {backbone} with {arguments}: {error}"
        ) from error
    if overlay:
        model.pretrained_cfg.pop("state_dict")  # type: ignore[operator,union-attr]
    return model


def _check_all_fit(name: str, overlay: dict[str, Any] | None, arguments: Mapping[str, Any]) -> None:
    """Refuse a file of weights that does not hold all of the model's.

    timm looks at all names only where the head stays; where it starts anew, other weights that are missing would too.

    Raises:
        RuntimeError: timm names those that do not fit.
    """
    import timm

    if overlay is None:
        return
    classes = overlay.get("num_classes", 0)  # 0: the file has no head, as that of a backbone
    if classes and arguments.get("num_classes") in (None, classes):
        return
    with torch.random.fork_rng(devices=[]):  # the head that starts anew is drawn as if nothing had been before it
        timm.create_model(
            name,
            True,
            pretrained_cfg_overlay={**overlay, "num_classes": classes, "state_dict": dict(overlay["state_dict"])},
            **{**arguments, "num_classes": classes},
        )


def _overlay(name: str, file: str) -> dict[str, Any]:
    """Return what to change in timm's description of pretrained weights, so that it takes those of `file`."""
    import timm

    path = Path(file) / "model.safetensors" if Path(file).is_dir() else Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: no file {str(path)!r}; give .safetensors or .pth, True, or False")
    if path.suffix == ".ckpt":
        raise ValueError(f"pretrained={file!r} is a Lightning checkpoint: start from it with init_checkpoint={file!r}")
    # Read here and not by timm, whose older versions unpickle anything.
    read = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    state = unwrapped(read)
    overlay: dict[str, Any] = {"state_dict": state, "source": None}
    known = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    classifier = known.classifier if known is not None else None
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    classes = [len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state]
    return {**overlay, "num_classes": classes[0]} if classes else overlay


def without_folder(backbone: str, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments for a backbone given as a folder or hub id; others as they are."""
    if backbone.startswith("hf-hub:"):
        import timm

        _, architecture, stored_args = timm.models.load_model_config_from_hf(backbone.removeprefix("hf-hub:"))
        return architecture, {**(stored_args or {}), **model_args}
    folder = Path(backbone.removeprefix("local-dir:"))
    if not folder.is_dir():
        return backbone, dict(model_args)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return stored["architecture"], {**stored.get("model_args", {}), **model_args}


def agreed(name: str, from_config: int | None, runtime: Mapping[str, Any]) -> int | None:
    """Return the value that configuration and data agree on, or the one of them that is given.

    Raises:
        ValueError: they differ; both are in the message.
    """
    from_data = runtime.get(name)
    if from_config is not None and from_data is not None and from_config != from_data:
        raise ValueError(
            f"{name} is {from_config} in the module's configuration but {from_data} in the data: leave it out of the "
            "configuration, or choose the data that it belongs to"
        )
    return from_config if from_config is not None else from_data


def input_size(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a timm model created with `arguments` expects."""
    channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    built = getattr(
        getattr(model, "patch_embed", None), "img_size", None
    )  # also where a folder's configuration says it
    size = arguments.get("img_size") or built or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    return arguments.get("in_chans") or channels, height, width
