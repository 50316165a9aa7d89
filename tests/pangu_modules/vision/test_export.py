"""Exports compute what the module computes, in timm, in onnxruntime and when read back."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from pangu_modules.vision.classifier import ImageClassifier
from pangu_modules.vision.scalenet.classifier import ScaleNetClassifier
from pangu_modules.vision.scalenet.unrolling import unroll

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}


def build(module=ScaleNetClassifier, backbone="vit_tiny_patch16_224", model_args=TINY, **fields):
    torch.manual_seed(0)
    if module is ScaleNetClassifier:
        fields = {"pretrained": False, "adapter_rank": 4, **fields}
    built = module.Config(backbone=backbone, model_args=model_args, **fields).build(
        num_classes=5, mean=(0.2,), std=(0.3,)
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def images(module) -> torch.Tensor:
    return torch.randn(module.example_batch(3)["image"].shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "fields",
    [
        {"module": ImageClassifier},
        {"adapter_on": []},
        {"adapter_on": [], "identity_start": True, "share_norms": True, "mapping": "reversed", "depth_factor": 3},
        {"adapter_on": [], "share_weights": False},
        {"adapter_on": [], "backbone": "swin_tiny_patch4_window7_224", "model_args": SWIN},
    ],
    ids=["base", "shared", "gated", "copied", "swin"],
)
def test_timm_folder_is_a_plain_timm_model(tmp_path, fields):
    module = build(**fields)
    module.export(tmp_path / "timm", "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert {type(part).__module__.split(".")[0] for part in loaded.modules()} <= {"timm", "torch"}
    # Another order of operations where gates are multiplied in; measured 1e-6.
    torch.testing.assert_close(loaded(images(module)), module.model(images(module)), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]["mean"][0] == 0.2
    assert not list(tmp_path.glob("timm/.part*"))
    start = {"backbone": str(tmp_path / "timm"), "pretrained": True, "num_classes": 5}
    again = ImageClassifier.Config(**start).build().eval()
    assert torch.equal(again.model(images(module)), loaded(images(module)))
    assert again.config.backbone == module.config.backbone  # a checkpoint rebuilds without the folder


def test_unrolled_copies_are_independent():
    module = build(adapter_on=[])
    plain = unroll(module.model)
    assert len({parameter.data_ptr() for parameter in plain.parameters()}) == len(list(plain.parameters()))
    assert sum(p.numel() for p in plain.blocks[2].parameters()) == sum(p.numel() for p in plain.blocks[0].parameters())
    assert torch.equal(plain(images(module)), module.model(images(module)))


def test_onnx_takes_any_batch_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = build(identity_start=True)
    module.export(tmp_path, "onnx")
    stored = json.loads((tmp_path / "preprocessing.json").read_text())
    assert stored == {"input_size": [1, 8, 8], "mean": [0.2], "std": [0.3]}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch_size in (1, 3):
        x = images(module)[:batch_size]
        logits = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        torch.testing.assert_close(logits, module.model(x).detach(), rtol=1e-4, atol=1e-5)  # measured 1e-6


def test_safetensors_are_read_back_with_adapters(tmp_path):
    module = build(identity_start=True)
    module.export(tmp_path, "safetensors")
    again = ScaleNetClassifier.load_exported(tmp_path)
    assert torch.equal(again.model(images(module)), module.model(images(module)))
    with pytest.raises(ValueError, match="holds a ScaleNetClassifier: load it with"):
        ImageClassifier.load_exported(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no pangu_config\.json"):
        ScaleNetClassifier.load_exported(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({}, "timm", "blocks.0.attn has a parallel adapter, which no timm model has; use the format 'onnx', or"),
        ({}, "onx", "no export format 'onx'.*Did you mean 'onnx'.*Formats: timm, safetensors, onnx"),
        (
            {"adapter_on": [], "backbone": "swin_tiny_patch4_window7_224", "model_args": SWIN, "mapping": "adjacent"},
            "timm",
            "computes something else .*windows alternate in another order",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path, fields, kind, message):
    with pytest.raises(ValueError, match=message):
        build(**fields).export(tmp_path, kind)
    assert list(tmp_path.iterdir()) == []


def test_the_timm_folder_prepares_images_as_training_did(tmp_path):
    from timm.data import resolve_model_data_config

    runtime = {"num_classes": 2, "in_chans": 3, "image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    runtime |= {"interpolation": "bilinear", "crop_share": 1.0, "crop_mode": "squash", "label_names": ["cat", "dog"]}
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    for backbone, model_args in (("vit_tiny_patch16_224", vit), ("resnet18", {"channels": [8, 8, 8, 8]})):
        folder = tmp_path / backbone
        ImageClassifier.Config(backbone=backbone, model_args=model_args).build(**runtime).eval().export(folder, "timm")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        for use_test_size in (False, True):
            found = resolve_model_data_config(model, use_test_size=use_test_size)
            assert tuple(found["input_size"]) == (3, 32, 32)
            assert list(found["mean"]) == runtime["mean"]
            assert list(found["std"]) == runtime["std"]
            assert (found["interpolation"], found["crop_pct"], found["crop_mode"]) == ("bilinear", 1.0, "squash")
        assert list(model.pretrained_cfg["label_names"]) == ["cat", "dog"]
        again = ImageClassifier.Config(backbone=str(folder), pretrained=True).build(
            num_classes=2, in_chans=3, mean=[0.5] * 3, defaulted=["mean"]
        )
        assert again.preprocessing["mean"] == runtime["mean"]
