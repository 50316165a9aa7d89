"""How images are prepared: the pretrained weights' own way, what the data chose, and sizes that do not fit."""

from __future__ import annotations

import pytest
import timm
import torch
from lightning.pytorch import Trainer

from pangu_modules.vision.classifier import ImageClassifier

NAME = "vit_tiny_patch16_224"  # its weights were trained with mean and std 0.5, DeiT's with ImageNet's
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
DATA = {**IMAGENET, "interpolation": "bilinear", "crop_share": 0.875, "crop_mode": "center"}


@pytest.fixture
def weights(tmp_path):
    torch.save(timm.create_model(NAME, num_classes=2, **TINY).state_dict(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def built(pretrained=False, backbone=NAME, model_args=TINY, **fields):
    runtime = {"num_classes": 2, "in_chans": 3, **fields}
    return ImageClassifier.Config(backbone=backbone, model_args=model_args, pretrained=pretrained).build(**runtime)


def test_pretrained_weights_replace_what_nobody_chose(weights, recwarn):
    module = built(weights, **DATA, defaulted=list(DATA))
    own = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_share": 0.9, "crop_mode": "center"}
    assert module.preprocessing == own
    assert module.hparams["mean"] == [0.5] * 3  # a checkpoint knows it
    assert "defaulted" not in module.hparams
    assert not recwarn.list


def test_what_was_chosen_counts_and_is_said_where_the_weights_want_another(weights):
    with pytest.warns(UserWarning, match=rf"{NAME} were trained .*mean=\[0\.485, 0\.456, 0\.406\] and not \[0\.5, 0"):
        module = built(weights, **DATA, defaulted=["interpolation"])
    assert module.preprocessing == {**DATA, "interpolation": "bicubic"}


def test_without_weights_the_data_decide(recwarn):
    assert built(**DATA, defaulted=list(DATA)).preprocessing == DATA
    assert not recwarn.list


def test_grey_images_keep_their_own_statistics(weights):
    grey = built(weights, in_chans=1, mean=[0.13], std=[0.3], defaulted=["mean", "crop_share"])
    assert grey.preprocessing == {"mean": [0.13], "std": [0.3], "crop_share": 0.9}


def test_a_checkpoint_passes_its_preparation_on(tmp_path):
    first = built(mean=[0.1] * 3, std=[0.2] * 3)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    start = ImageClassifier.Config(backbone=NAME, model_args=TINY, init_checkpoint=str(tmp_path / "first.ckpt"))
    second = start.build(num_classes=2, in_chans=3, **IMAGENET, defaulted=["mean", "std"])
    assert second.preprocessing == {"mean": [0.1] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    ("backbone", "model_args"),
    [(NAME, TINY), ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4, "embed_dim": 16,
                                                     "depths": [1], "num_heads": [1]}),
     ("mixer_s16_224", {"img_size": 32})],
)  # fmt: skip
def test_images_of_another_size_are_refused_with_both_sizes(backbone, model_args):
    message = rf"image_size=64, but {backbone} takes images of 32 pixels: set image_size=32 in the data, or img_size=64"
    with pytest.raises(ValueError, match=message):
        built(backbone=backbone, model_args=model_args, image_size=64)
    module = built(backbone=backbone, model_args=model_args, image_size=32)
    with pytest.raises(ValueError, match=message):  # a checkpoint meets other data
        module.check_images(64)


@pytest.mark.parametrize(
    ("backbone", "model_args"),
    [(NAME, {**TINY, "dynamic_img_size": True}), ("resnet18", {"channels": [8, 8, 8, 8]})],
)
def test_models_that_take_any_size_take_it(backbone, model_args):
    module = built(backbone=backbone, model_args=model_args, image_size=64)
    module.check_images(96)
    assert module.eval().model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_other_classes_are_refused():
    module = built(label_names=["cat", "dog"])
    module.check_images(32, ["cat", "dog"])
    module.check_images(32)
    with pytest.raises(ValueError, match=r"2 classes are not the 2 that the model was built for .*'bird'"):
        module.check_images(32, ["bird", "dog"])
