"""How images are prepared for a model: what its weights were trained with, what the data say, and the size it takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from pangu_modules.vision.backbones import input_size

FIELDS = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_share": "crop_pct",
          "crop_mode": "crop_mode"}  # fmt: skip
"""Fields of image data -> timm's names of them in ``pretrained_cfg``."""


def preprocessing_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that say how images are prepared, by field; a field that is not there is left out."""
    return {name: _plain(values[name]) for name in FIELDS if values.get(name) is not None}


def preprocessing_of_weights(model: nn.Module, in_chans: int) -> dict[str, Any]:
    """Return how timm's pretrained weights of a model want images; for other channels than theirs without statistics.

    Args:
        model: made by timm.
        in_chans: channels of the images.
    """
    known: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    own = preprocessing_of({name: known.get(theirs) for name, theirs in FIELDS.items()})
    return {name: value for name, value in own.items() if not isinstance(value, list) or len(value) == in_chans}


def with_weights(runtime: Mapping[str, Any], own: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what the data told, its mere defaults replaced by the weights' own; a warning names what differs else.

    Args:
        runtime: what the data told; ``defaulted`` names the fields that nobody chose. It is not in the result.
        own: what the weights were trained with; nothing where there are no weights.
        source: names the weights.
    """
    told = {name: value for name, value in runtime.items() if name != "defaulted"}
    settled = told | {name: own[name] for name in runtime.get("defaulted", ()) if name in own}
    given = preprocessing_of(settled)
    different = [
        f"{name}={given[name]} and not {own[name]}"
        for name in given
        if name in own and not _equal(given[name], own[name])
    ]
    if different:
        warnings.warn(
            f"the weights of {source} were trained on images prepared in another way than the data's: "
            f"{'; '.join(different)}. To prepare images as the weights want them, leave these fields of the data empty",
            stacklevel=2,
        )
    return settled


def check_image_size(model: nn.Module, arguments: Mapping[str, Any], image_size: int | None, backbone: str) -> None:
    """Refuse images of another size than the model's, if it takes no other.

    Args:
        model: made by timm with `arguments`.
        arguments: of ``timm.create_model``.
        image_size: height and width of the data's images; None if unknown.
        backbone: names the model.

    Raises:
        ValueError: the sizes differ; both are in the message.
    """
    _, height, width = input_size(model, arguments)
    if image_size is None or (height, width) == (image_size, image_size) or not _is_fixed(model, arguments):
        return
    size = str(height) if height == width else f"{height}x{width}"
    remedy = f"set image_size={height} in the data" if height == width else "choose a model of square images"
    raise ValueError(
        f"the data's images have image_size={image_size}, but {backbone} takes images of {size} pixels: {remedy}, or "
        f"img_size={image_size} in the module's model_args"
    )


def _is_fixed(model: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Return whether a model takes one size of images alone: by timm's description, unless it was made flexible."""
    patches = getattr(model, "patch_embed", None)
    if patches is not None and hasattr(patches, "strict_img_size"):
        return bool(patches.strict_img_size) and getattr(patches, "img_size", None) is not None
    return bool(model.pretrained_cfg.get("fixed_input_size")) and not arguments.get("dynamic_img_size")  # type: ignore[operator,union-attr]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(abs(a - b) < 5e-4 for a, b in zip(first, second, strict=True))
    return bool(first == second)
