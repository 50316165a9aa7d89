"""Exports of image classifiers: timm's hub folder, ONNX, or plain weights with their configuration.

A model that a plan has changed goes to timm's format through that plan, see `TimmCounterpart`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pangu_modules.common.files import atomic_files, check_new
from pangu_modules.common.names import nearest
from pangu_modules.training.module import load_weights
from pangu_modules.vision.preprocessing import FIELDS

# Logits of a written model against the original's, relative to their largest: fp32 in another order of operations.
# Measured on 2- to 24-block models: 1e-6.
TOLERANCE = 1e-4
OTHER_FORMATS = (
    "use the format 'onnx', or 'safetensors' with load_exported, or the checkpoint with load_from_checkpoint"
)
"""The remedy where a model has no counterpart in timm."""


class ExportedClassifier(Protocol):
    """What an export reads of a classifier, which is an `nn.Module`, too."""

    config: Any
    runtime: dict[str, Any]
    model: nn.Module

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How its images are prepared."""

    def model_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model``."""

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Return a batch of images of the right size."""

    def state_dict(self) -> dict[str, Any]:
        """Return all weights by name."""


@runtime_checkable
class TimmCounterpart(Protocol):
    """A plan whose result is not a timm model but can be written as one."""

    def timm_counterpart(self, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """Return a copy as a timm model, and the arguments of ``timm.create_model`` that differ from the base's.

        Raises:
            ValueError: timm has no such model.
        """


def write(module: ExportedClassifier, folder: Path, kind: str) -> None:
    """Write `module` to `folder` in one of its ``export_formats`` and read it back to compare the logits.

    Raises:
        ValueError: the format is unknown, or the model has no counterpart in it.
        ImportError: onnx or onnxruntime is not installed.
        FileExistsError: something is in the folder already.
    """
    check_new(folder, "export")
    writers = {"timm": _write_timm, "safetensors": _write_safetensors, "onnx": _write_onnx}
    if kind not in writers:
        raise ValueError(f"no export format {kind!r}.{nearest(kind, writers)} Formats: {', '.join(writers)}")
    with atomic_files(folder) as temporary:
        writers[kind](module, temporary)


def read_safetensors(cls: Any, folder: Path) -> Any:
    """Build `cls` from a folder written in the format "safetensors".

    Raises:
        FileNotFoundError: the folder has no such export.
        ValueError: another class wrote it, or its weights do not fit.
    """
    from safetensors.torch import load_file

    if not (folder / "pangu_config.json").is_file():
        raise FileNotFoundError(f"{folder} has no pangu_config.json: export there in the format 'safetensors' first")
    stored = json.loads((folder / "pangu_config.json").read_text(encoding="utf-8"))
    if stored["class"] != cls.__name__:
        raise ValueError(f"{folder} holds a {stored['class']}: load it with {stored['class']}.load_exported")
    module = cls.from_stored({**stored["runtime"], "config": stored["config"]})
    load_weights(module, load_file(folder / "model.safetensors"), source=str(folder))
    return module.eval()


def _write_safetensors(module: ExportedClassifier, folder: Path) -> None:
    from safetensors.torch import save_file

    stored = {"class": type(module).__name__, "config": module.config.plain(), "runtime": module.runtime}
    (folder / "pangu_config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / "model.safetensors")


def _write_timm(module: ExportedClassifier, folder: Path) -> None:
    import timm

    plain, arguments = copy.deepcopy(module.model), module.model_arguments()
    for plan in module.config.structure:
        if isinstance(plan, TimmCounterpart):
            plain, changed = plan.timm_counterpart(plain)
            arguments |= changed
    plain = plain.cpu().float()
    # The tag names timm's own weights, which these are no longer; nor are its recommendations for the test theirs.
    preprocessing = {FIELDS[name]: value for name, value in module.preprocessing.items()}
    own = {"tag": None, "test_input_size": None, "test_crop_pct": None, "input_size": image_shape(module)}
    config: dict[str, Any] = {"pretrained_cfg": {**own, **preprocessing}}
    if "label_names" in module.runtime:
        config["label_names"] = list(module.runtime["label_names"])
    timm.models.save_for_hf(plain, str(folder), config, model_args=arguments, safe_serialization=True)
    images = _random_images(module, 2)
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
        difference = _difference(loaded.eval(), plain.eval(), images)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"timm cannot build {module.config.backbone} with {arguments}: {error}; {OTHER_FORMATS}"
        ) from error
    if difference > TOLERANCE:
        raise ValueError(
            f"timm's {module.config.backbone} with {arguments} computes something else (relative difference "
            f"{difference:.1e}), e.g. because its windows alternate in another order; {OTHER_FORMATS}"
        )


def image_shape(module: ExportedClassifier) -> list[int]:
    """Return (channels, height, width) of the images that a module was trained on, or else of those its model takes."""
    channels, height, width = module.example_batch(1)["image"].shape[1:]
    size = module.runtime.get("image_size")
    return [channels, size or height, size or width]


def _write_onnx(module: ExportedClassifier, folder: Path) -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ImportError as error:
        raise ImportError(f"export to ONNX needs {error.name}: pip install 'pangu-recipes[export]'") from error

    model = copy.deepcopy(module.model).cpu().float().eval()
    path = folder / "model.onnx"
    torch.onnx.export(
        model,
        (_random_images(module, 2),),
        path,
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])

    difference = _difference(run, model, _random_images(module, 3))
    # ONNX has no words for how images are prepared, nor for the classes: they lie beside the model, by timm's names.
    prepared = {FIELDS[name]: value for name, value in module.preprocessing.items()}
    names = {"label_names": list(module.runtime["label_names"])} if "label_names" in module.runtime else {}
    plain = {"input_size": image_shape(module), **prepared, **names}
    (folder / "preprocessing.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    if difference > TOLERANCE:
        raise ValueError(f"onnxruntime's logits differ from torch's by {difference:.1e} of the largest")


def _random_images(module: ExportedClassifier, batch_size: int) -> Tensor:
    shape = module.example_batch(batch_size)["image"].shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _difference(ours: Any, theirs: nn.Module, images: Tensor) -> float:
    """Return the largest difference of two models' logits, relative to the largest logit."""
    want = theirs(images)
    return float((ours(images) - want).abs().max() / want.abs().max())
