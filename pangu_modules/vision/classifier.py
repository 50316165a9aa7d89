"""Image classifiers: any timm model as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional

from pangu_modules.common.config import PLAIN_NAME, caller_only
from pangu_modules.training.module import PanguModule
from pangu_modules.training.objectives import Batch, Objective, Outputs
from pangu_modules.vision.backbones import agreed, create_backbone, input_size, without_folder
from pangu_modules.vision.mixing import mix
from pangu_modules.vision.preprocessing import (
    check_image_size,
    preprocessing_of,
    preprocessing_of_weights,
    with_weights,
)

# Arguments of timm.create_model that have a field of their own.
FIELD_OF_ARGUMENT = {
    "num_classes": "num_classes",
    "pretrained": "pretrained",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path",
}

PLACES_OF_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of timm.create_model that say what it reads, and how: it would unpickle anything."""


class ImageClassifier(PanguModule):
    """Any timm model, trained with cross-entropy.

    A batch holds ``image`` (batch, channels, height, width) float, ``label`` (batch,) int64 and, if samples are
    weighted, ``sample_weight`` (batch,). With mixup or cutmix a weight belongs to the mixed sample in its place.

    Args:
        config: the configuration.
        **runtime: what only the data know: ``num_classes``; ``in_chans``, the images' channels (the configuration may
            give these two instead); how they are prepared (``mean``, ``std``, ``interpolation``, ``crop_share``,
            ``crop_mode``, ``image_size``) and ``label_names``, which exports repeat. What ``defaulted`` names is
            replaced by what pretrained weights were trained with.

    Raises:
        ValueError: configuration and data disagree on classes, channels or the images' size, or none of them gives the
            classes.
    """

    class Config(PanguModule.Config):
        """Backbone and training of a classifier."""

        backbone: str = Field(
            "deit_base_patch16_224",
            description="timm model name, hf-hub:..., or a folder exported in timm's format.",
            json_schema_extra=PLAIN_NAME,
        )
        model_args: dict[str, Any] = Field(
            {}, description="Further arguments of timm.create_model, e.g. img_size, patch_size, depth, weight_init."
        )
        pretrained: bool | str = Field(
            False,
            description="true: timm's weights of that name; a path: .safetensors or .pth; false: from scratch.",
            json_schema_extra=caller_only(False),
        )
        num_classes: PositiveInt | None = Field(None, description="Classes; null takes the number from the data.")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
        mixup: NonNegativeFloat = Field(0.0, description="Alpha of mixup's beta distribution; 0 for none.")
        cutmix: NonNegativeFloat = Field(0.0, description="Alpha of cutmix's beta distribution; 0 for none.")
        drop_rate: float | None = Field(None, ge=0, lt=1, description="Dropout before the head; null is timm's.")
        drop_path: float | None = Field(
            None, ge=0, lt=1, description="Stochastic depth rate of the last block, a linear ramp; null is timm's."
        )

        @field_validator("model_args")
        @classmethod
        def _check_model_args(cls, value: dict[str, Any]) -> dict[str, Any]:
            for argument, field in FIELD_OF_ARGUMENT.items():
                if argument in value:
                    raise ValueError(f"model_args holds {argument!r}, which is the field {field!r}; set it there")
            for argument in PLACES_OF_WEIGHTS:
                if argument in value:
                    raise ValueError(f"model_args holds {argument!r}: name a file of weights in pretrained")
            return value

    config: Config
    monitor: ClassVar[tuple[str, str]] = ("val/accuracy", "max")
    export_formats: ClassVar[tuple[str, ...]] = ("timm", "safetensors", "onnx")

    def __init__(self, config: Config | Mapping[str, Any], **runtime: Any) -> None:
        super().__init__(config, **runtime)
        from timm.data import Mixup

        num_classes = self.model_arguments()["num_classes"]
        self.objectives["classification"] = Objective(classification_loss)
        self.val_metrics = _metrics(num_classes, "val/")
        self.test_metrics = _metrics(num_classes, "test/")
        self.mixup = None
        if self.config.mixup or self.config.cutmix:
            self.mixup = Mixup(
                mixup_alpha=self.config.mixup,
                cutmix_alpha=self.config.cutmix,
                label_smoothing=self.config.label_smoothing,
                num_classes=num_classes,
            )

    def model_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` that configuration and data give."""
        num_classes = agreed("num_classes", self.config.num_classes, self.runtime)
        if num_classes is None:
            raise ValueError("num_classes is unknown: set it in the configuration, or build with the data's number")
        arguments = {
            **self.config.model_args,
            "num_classes": num_classes,
            "in_chans": agreed("in_chans", self.config.model_args.get("in_chans"), self.runtime),
            "drop_rate": self.config.drop_rate,
            "drop_path_rate": self.config.drop_path,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def build_model(self) -> nn.Module:
        """Return the timm model; its pretrained weights are left out where a checkpoint will replace them."""
        config, arguments = self.config, self.model_arguments()
        pretrained = False if config.init_checkpoint else config.pretrained
        model = create_backbone(config.backbone, pretrained=pretrained, **arguments)
        check_image_size(model, arguments, self.runtime.get("image_size"), config.backbone)
        self.runtime = with_weights(self.runtime, *self._weights_preprocessing(model, arguments))
        return model

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared for this model, by field: mean, std, interpolation, crop_share, crop_mode."""
        return preprocessing_of(self.runtime)

    def check_images(self, image_size: int, label_names: Sequence[str] | None = None) -> None:
        """Refuse images of a size that the model does not take, or of other classes than those it was built for.

        Args:
            image_size: height and width in pixels.
            label_names: the classes in the order of their numbers; None for images without labels.

        Raises:
            ValueError: they do not fit; the message names both.
        """
        check_image_size(self.model, self.model_arguments(), image_size, self.config.backbone)
        own = self.runtime.get("label_names")
        if label_names is not None and own is not None and list(own) != list(label_names):
            different = sorted(set(own) ^ set(label_names)) or "another order"
            raise ValueError(
                f"the data's {len(label_names)} classes are not the {len(own)} that the model was built for "
                f"({str(different)[:200]}): choose the data that it belongs to"
            )

    def _weights_preprocessing(self, model: nn.Module, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Return how the weights that the model starts from want images, and a name of them; {} without weights."""
        start, config = self.config.init_checkpoint, self.config
        if start is not None:
            stored = torch.load(start, map_location="cpu", weights_only=True, mmap=True).get("hyper_parameters", {})
            return preprocessing_of(stored), start
        if not config.pretrained or torch.get_default_device().type == "meta":
            return {}, config.backbone
        return preprocessing_of_weights(model, input_size(model, arguments)[0]), config.backbone

    def fields_spent_by_building(self) -> dict[str, Any]:
        """Return the fields that weights or files only matter to while building: a checkpoint rebuilds without them."""
        backbone, model_args = without_folder(self.config.backbone, self.config.model_args)
        model_args = {name: value for name, value in model_args.items() if name not in FIELD_OF_ARGUMENT}
        spent = {"pretrained": False, "backbone": backbone, "model_args": model_args}
        return {**super().fields_spent_by_building(), **spent}

    def compute_outputs(self, batch: Batch) -> Outputs:
        """Return ``logits`` (batch, classes) of ``batch["image"]``."""
        return {"logits": self.model(batch["image"])}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mix the batch if the configuration says so, then train on it."""
        if self.mixup is not None:
            # Of the place in training alone, so a resumed run mixes as an uninterrupted one does.
            seed = (torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank)
            image, target = mix(self.mixup, batch["image"], batch["label"], seed)
            batch = {**batch, "image": image, "label": target}
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/loss`` (without smoothing), ``val/accuracy`` and, above five classes, ``val/accuracy_top5``."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same as validation, as ``test/...``."""
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, stage: str, metrics: Any) -> None:
        logits, label = self.compute_outputs(batch)["logits"], batch["label"]
        loss = functional.cross_entropy(logits, label)
        self.log(f"{stage}/loss", loss, batch_size=len(label), sync_dist=True, prog_bar=True)
        metrics.update(logits, label)
        self.log_dict(metrics, batch_size=len(label), prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return class probabilities, (batch, classes) float32."""
        return functional.softmax(self.compute_outputs(batch)["logits"].float(), dim=-1)

    def prediction_rows(self, batch: Batch, outputs: Tensor) -> list[dict[str, Any]]:
        """Return a row for each image: ``file`` where the batch has it, the likeliest class, and all probabilities.

        ``label`` is the class's name, or its number as text where the data have no names.
        """
        classes = outputs.argmax(dim=-1).tolist()
        names = self.runtime.get("label_names") or [str(number) for number in range(outputs.shape[-1])]
        files = [{"file": str(file)} for file in batch.get("file", ())] or [{} for _ in classes]
        return [
            {**file, "label": names[number], "class": number, "probability": row[number], "probabilities": row}
            for file, number, row in zip(files, classes, outputs.tolist(), strict=True)
        ]

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Return a batch of zeros on the model's device."""
        device = next(self.model.parameters()).device
        size = input_size(self.model, self.model_arguments())
        return {
            "image": torch.zeros(batch_size, *size, device=device),
            "label": torch.zeros(batch_size, dtype=torch.int64, device=device),
        }

    def export(self, folder: Path, kind: str = "timm") -> None:
        """Write the model for use elsewhere; see `pangu_modules.vision.export`.

        Args:
            folder: where the files go.
            kind: "timm", a folder for ``timm.create_model("local-dir:...", pretrained=True)``; "onnx", with a free
                batch size; "safetensors", weights and configuration for `load_exported`.

        Raises:
            ValueError: the model has no counterpart in that format; the message names those that work.
        """
        from pangu_modules.vision.export import write

        write(self, Path(folder), kind)

    @classmethod
    def load_exported(cls, folder: str | Path) -> Self:
        """Return the module that was exported to `folder` in the format "safetensors"."""
        from pangu_modules.vision.export import read_safetensors

        return read_safetensors(cls, Path(folder))


def classification_loss(module: ImageClassifier, batch: Batch, outputs: Outputs) -> Tensor:
    """Return the cross-entropy of each image, (batch,), for classes (batch,) or soft targets (batch, classes).

    Classes are smoothed by ``label_smoothing``; soft targets are smoothed already.
    """
    label = batch["label"]
    if label.is_floating_point():
        return functional.cross_entropy(outputs["logits"], label.to(outputs["logits"].dtype), reduction="none")
    smoothing = module.config.label_smoothing
    return functional.cross_entropy(outputs["logits"], label, reduction="none", label_smoothing=smoothing)


def _metrics(num_classes: int, prefix: str) -> Any:
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy

    top = {"accuracy": 1, "accuracy_top5": 5} if num_classes > 5 else {"accuracy": 1}
    metrics: dict[str, Any] = {
        name: MulticlassAccuracy(num_classes, top_k=top_k, average="micro", validate_args=False)
        for name, top_k in top.items()
    }
    return MetricCollection(metrics, prefix=prefix)
