"""Classifiers: losses, mixing, metrics, learning-rate groups, checkpoints, and the errors that help."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pangu_modules.training.objectives import evaluate
from pangu_modules.training.optim import OptimizerConfig
from pangu_modules.vision.classifier import ImageClassifier, classification_loss
from pangu_modules.vision.mixing import mix
from pangu_modules.vision.scalenet.classifier import ScaleNetClassifier
from pangu_modules.vision.scalenet.sharing import pretrained_parameters

TINY = {
    "backbone": "vit_tiny_patch16_224",
    "model_args": {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "in_chans": 1,
        "weight_init": "jax",
    },
}
EXPANDED = {**TINY, "adapter_rank": 4, "pretrained": False}


def perturbed(module: ImageClassifier) -> ImageClassifier:
    """Move the parameters away from their start: the head's is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return module


def data(size: int = 16, classes: int = 10) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(size) % classes
    image = torch.randn(classes, 1, 8, 8, generator=generator)[label]
    noise = 0.1 * torch.randn(size, 1, 8, 8, generator=generator)
    samples = [{"image": image[index] + noise[index], "label": label[index]} for index in range(size)]
    return DataLoader(samples, batch_size=8)


def trainer(folder, **arguments) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 1, **arguments})


@pytest.fixture
def base_checkpoint(tmp_path):
    seed_everything(0, verbose=False)
    fit = trainer(tmp_path)
    fit.fit(perturbed(ImageClassifier.Config(**TINY).build(num_classes=10)), data())
    fit.save_checkpoint(tmp_path / "base.ckpt")
    return str(tmp_path / "base.ckpt")


def loss_by_hand(logits: Tensor, label: int, smoothing: float) -> float:
    probabilities = [float(torch.exp(value) / torch.exp(logits).sum()) for value in logits]
    target = [smoothing / len(logits) + (1 - smoothing) * (index == label) for index in range(len(logits))]
    return -sum(share * np.log(value) for share, value in zip(target, probabilities, strict=True))


def test_loss_is_smoothed_cross_entropy_per_image():
    module = ImageClassifier.Config(**TINY, label_smoothing=0.1).build(num_classes=10)
    logits = torch.randn(4, 10, dtype=torch.float64)
    label = torch.tensor([3, 0, 9, 3])
    want = torch.tensor([loss_by_hand(row, int(target), 0.1) for row, target in zip(logits, label, strict=True)])
    got = classification_loss(module, {"label": label}, {"logits": logits})
    torch.testing.assert_close(got, want.double(), rtol=0, atol=1e-12)  # measured 1e-15
    soft = functional.one_hot(label, 10).double() * 0.9 + 0.01
    torch.testing.assert_close(classification_loss(module, {"label": soft}, {"logits": logits}), got)


def test_sample_weights_weight_the_loss_of_their_image():
    module = perturbed(ImageClassifier.Config(**TINY).build(num_classes=10)).eval()
    batch = next(iter(data()))
    outputs = module.compute_outputs(batch)
    weights = torch.tensor([0.0, 2.0] * 4)
    loss = evaluate(module.objectives, module, {**batch, "sample_weight": weights}, outputs).total
    each = [functional.cross_entropy(outputs["logits"][i : i + 1], batch["label"][i : i + 1]) for i in range(8)]
    torch.testing.assert_close(loss, sum(weight * value for weight, value in zip(weights, each, strict=True)) / 8)


@pytest.mark.parametrize("batch_size", [6, 5, 1])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets_tell_the_share_of_each_image(kind, batch_size):
    from timm.data import Mixup

    mixup = Mixup(**{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, f"{kind}_alpha": 1.0}, label_smoothing=0.0, num_classes=6)
    label = torch.arange(batch_size)
    images = label.float().view(-1, 1, 1, 1).expand(-1, 2, 9, 9)  # image i has the value i everywhere
    before, state = images.clone(), np.random.get_state()[1].copy()
    mixed, target = mix(mixup, images, label, seed=(1, 2, 3))
    assert torch.equal(images, before)
    assert (np.random.get_state()[1] == state).all()
    torch.testing.assert_close(target.sum(1), torch.ones(batch_size))
    # The mean value of a mixed image is the mean label under its target.
    torch.testing.assert_close(mixed.mean((1, 2, 3)), target @ torch.arange(6.0))
    assert batch_size == 1 or not torch.equal(mixed, images)
    again, _ = mix(mixup, images, label, seed=(1, 2, 3))
    other, _ = mix(mixup, images, label, seed=(1, 2, 4))
    assert torch.equal(again, mixed)
    assert batch_size == 1 or not torch.equal(other, mixed)


def test_a_resumed_run_mixes_as_an_uninterrupted_one_whatever_numpys_state(tmp_path):
    def trained(noise: int, ckpt_path: str | None = None) -> ImageClassifier:
        seed_everything(0, verbose=False)
        module = ImageClassifier.Config(**TINY, mixup=0.8, cutmix=1.0, label_smoothing=0.1).build(num_classes=10)
        np.random.seed(noise)
        keep = ModelCheckpoint(tmp_path / str(noise), filename="{epoch}", save_top_k=-1)
        fit = trainer(tmp_path, max_epochs=2, callbacks=[keep])
        fit.fit(module, data(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return module

    whole = trained(1)
    resumed = trained(2, str(tmp_path / "1" / "epoch=0.ckpt"))
    start = ImageClassifier.load_from_checkpoint(tmp_path / "1" / "epoch=0.ckpt", weights_only=True)
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(start.model.head.weight, whole.model.head.weight)


def test_every_batch_of_every_epoch_is_mixed_in_its_own_way(tmp_path, monkeypatch):
    seeds = []

    def recording(mixup, images, labels, seed):
        seeds.append(seed)
        return mix(mixup, images, labels, seed)

    monkeypatch.setattr("pangu_modules.vision.classifier.mix", recording)
    module = ImageClassifier.Config(**TINY, mixup=0.8).build(num_classes=10)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(module, data())
    assert len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize("classes", [5, 10])
def test_validation_and_test_metrics_over_the_whole_set(tmp_path, classes):
    module = perturbed(ImageClassifier.Config(**TINY, label_smoothing=0.3).build(num_classes=classes))
    loader = data(size=12, classes=classes)  # batches of 8 and 4
    run = trainer(tmp_path)
    metrics = {**run.validate(module, loader, verbose=False)[0], **run.test(module, loader, verbose=False)[0]}
    logits = torch.cat([module.compute_outputs(batch)["logits"] for batch in loader]).detach()
    label = torch.cat([batch["label"] for batch in loader])
    hits = [[int(target) in row.topk(k).indices for row, target in zip(logits, label, strict=True)] for k in (1, 5)]
    for stage in ("val", "test"):
        assert metrics[f"{stage}/loss"] == pytest.approx(float(functional.cross_entropy(logits, label)), rel=1e-5)
        assert metrics[f"{stage}/accuracy"] == pytest.approx(np.mean(hits[0]))
        assert metrics.get(f"{stage}/accuracy_top5") == (None if classes == 5 else pytest.approx(np.mean(hits[1])))


def test_predictions_are_probabilities(tmp_path):
    module = perturbed(ImageClassifier.Config(**TINY).build(num_classes=10))
    first = trainer(tmp_path).predict(module, data())[0]
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.sum(1), torch.ones(8))
    torch.testing.assert_close(first.log(), functional.log_softmax(module.model(next(iter(data()))["image"]), -1))


@pytest.mark.parametrize("module", [ImageClassifier, ScaleNetClassifier])
def test_a_plan_needs_neither_weights_nor_network(module):
    with torch.device("meta"):
        config = module.Config(backbone="deit_tiny_patch16_224", pretrained=True, drop_path=0.1)
        built = config.build(num_classes=1000)
    batch = built.example_batch(2)
    assert built.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert batch["image"].shape == (2, 3, 224, 224)
    assert built.eval().compute_outputs(batch)["logits"].shape == (2, 1000)
    assert built.active_parameters() == (5_717_416 if module is ImageClassifier else 6_031_528)


def test_expansion_starts_from_a_base_checkpoint(base_checkpoint, tmp_path):
    base = ImageClassifier.load_from_checkpoint(base_checkpoint, weights_only=True)
    config = {**EXPANDED, "init_checkpoint": base_checkpoint, "identity_start": True}
    module = ScaleNetClassifier.Config(**config).build(num_classes=10)
    assert len(module.model.blocks) == 4
    x = next(iter(data()))["image"]
    torch.testing.assert_close(module.eval().model(x), base.eval().model(x), rtol=0, atol=1e-6)  # measured 0
    fit = trainer(tmp_path)
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "deep.ckpt")
    (tmp_path / "base.ckpt").unlink()  # an expanded checkpoint stands alone
    again = ScaleNetClassifier.load_from_checkpoint(tmp_path / "deep.ckpt", weights_only=True)
    assert torch.equal(again.eval().model(x), module.eval().model(x))
    assert again.config == module.config
    qkv = again.model.blocks[0].attn.module.qkv.weight
    assert again.model.blocks[2].attn.module.resolve().qkv.weight is qkv


def test_expanded_checkpoint_is_read_in_a_process_that_imports_the_package_alone(tmp_path):
    module = perturbed(ScaleNetClassifier.Config(**EXPANDED, mixup=0.8).build(num_classes=10))
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "deep.ckpt")
    x = next(iter(data()))["image"]
    torch.save((x, module.eval().model(x).detach()), tmp_path / "expected.pt")
    script = f"""
        import torch, pangu_modules
        from pangu_modules.vision.scalenet.classifier import ScaleNetClassifier
        module = ScaleNetClassifier.load_from_checkpoint({str(tmp_path / "deep.ckpt")!r}, weights_only=True).eval()
        x, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
        assert torch.equal(module.model(x), expected)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=240)


def test_an_expanded_checkpoint_is_not_expanded_again_in_another_way(tmp_path):
    module = ScaleNetClassifier.Config(**EXPANDED).build(num_classes=10)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "deep.ckpt")
    start = {"init_checkpoint": str(tmp_path / "deep.ckpt")}
    assert len(ScaleNetClassifier.Config(**EXPANDED, **start).build(num_classes=10).model.blocks) == 4
    assert len(ImageClassifier.Config(**TINY, **start).build(num_classes=10).model.blocks) == 4
    with pytest.raises(ValueError, match="expanded with depth_factor=None and not 3, adapter_rank=4 and not 2"):
        ScaleNetClassifier.Config(**{**EXPANDED, "depth_factor": 3, "adapter_rank": 2}, **start).build(num_classes=10)


class Record(Callback):
    """Keeps a shared weight after every step."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights.append(pl_module.model.blocks[2].attn.module.resolve().qkv.weight.detach().clone())


def test_lightnings_moving_average_averages_the_shared_weights(tmp_path):
    module = perturbed(ScaleNetClassifier.Config(**EXPANDED).build(num_classes=10))
    record = Record()
    fit = trainer(tmp_path, max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5), record])
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = ScaleNetClassifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    want = record.weights[0]
    for weight in record.weights[1:]:
        want = 0.5 * want + 0.5 * weight
    for block in (again.model.blocks[0], again.model.blocks[2]):
        torch.testing.assert_close(block.attn.module.qkv.weight.detach(), want)
    assert not torch.allclose(want, record.weights[-1])


def test_training_the_adapters_leaves_the_pretrained_weights(tmp_path):
    module = ScaleNetClassifier.Config(**EXPANDED, train="adapters").build(num_classes=10)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(module, data())
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(before) - set(pretrained_parameters(module.model))
    own = ("adapter", "blocks.2.norm", "blocks.3.norm", "head.")
    assert changed == {name for name in before if any(part in name for part in own)}


def test_backbone_lr_scale_is_the_ratio_of_the_learning_rates(tmp_path):
    optimizer = OptimizerConfig(lr=0.01, schedule="cosine", warmup_share=0.5)
    module = ScaleNetClassifier.Config(**EXPANDED, backbone_lr_scale=0.1, optimizer=optimizer).build(num_classes=10)
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    fit.fit(module, data())
    pretrained = {id(parameter) for parameter in pretrained_parameters(module.model).values()}
    exempt = {id(module.model.pos_embed), id(module.model.cls_token)}
    groups = fit.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    for group in groups:
        shared = {id(parameter) in pretrained for parameter in group["params"]}
        assert len(shared) == 1
        assert group["initial_lr"] == pytest.approx(0.001 if shared == {True} else 0.01)
        decays = {parameter.ndim >= 2 and id(parameter) not in exempt for parameter in group["params"]}
        assert decays == {group["weight_decay"] > 0}
    assert len({group["lr"] / group["initial_lr"] for group in groups}) == 1


def test_local_weights_and_folders_start_a_model(tmp_path):
    from safetensors.torch import save_file

    state = timm.create_model(TINY["backbone"], num_classes=10, **TINY["model_args"]).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"model": state}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        path = str(tmp_path / name)
        same = ImageClassifier.Config(**TINY, pretrained=path).build(num_classes=10)
        assert all(torch.equal(value, state[key]) for key, value in same.model.state_dict().items())
        assert same.config.pretrained is False
        assert "state_dict" not in same.model.pretrained_cfg
        other = ImageClassifier.Config(**TINY, pretrained=path).build(num_classes=4).model.state_dict()
        assert torch.equal(other["pos_embed"], state["pos_embed"])
        with pytest.raises(ValueError, match=r"weights\.[a-z]+: no weights that fit vit_tiny_patch16_224 with"):
            ImageClassifier.Config(**{**TINY, "model_args": {}}, pretrained=path).build(num_classes=10)
        assert other["head.weight"].shape == (4, 16)


@pytest.mark.parametrize(
    ("fields", "runtime", "error", "message"),
    [
        ({}, {}, ValueError, "num_classes is unknown: set it in the configuration"),
        (
            {"num_classes": 5},
            {"num_classes": 10},
            ValueError,
            "num_classes is 5 in the .* but 10 in the data",
        ),
        (
            {},
            {"num_classes": 5, "in_chans": 3},
            ValueError,
            "in_chans is 1 in the .* but 3 in the data",
        ),
        (
            {"backbone": "deit_smal_patch16_224"},
            {"num_classes": 5},
            ValueError,
            "mean 'deit_small_patch16_224'",
        ),
        ({"model_args": {"dept": 2}}, {"num_classes": 5}, ValueError, "model_args: vit_tiny_patch16_224 .*'dept'"),
        (
            {"model_args": {"num_classes": 2}},
            {},
            ValidationError,
            "which is the field 'num_classes'",
        ),
        ({"model_args": {"drop_path_rate": 0.1}}, {}, ValidationError, "which is the field 'drop_path'"),
        ({"pretrained": "/no/such.pth"}, {"num_classes": 5}, FileNotFoundError, "pretrained: no file '/no/such.pth'"),
        ({"train": "adapters", "adapter_on": []}, {}, ValidationError, "nothing to train; name some, or train='all'"),
        ({"backbone_lr_scale": 0}, {}, ValidationError, "greater than 0"),
        ({"label_smoothing": 1.0}, {}, ValidationError, "less than 1"),
    ],
)
def test_errors_name_field_value_and_remedy(fields, runtime, error, message):
    with pytest.raises(error, match=message):
        ScaleNetClassifier.Config(**{**EXPANDED, **fields}).build(**runtime)


def test_a_lightning_checkpoint_is_no_weight_file(base_checkpoint):
    with pytest.raises(ValueError, match="is a Lightning checkpoint: start from it with init_checkpoint="):
        ImageClassifier.Config(**TINY, pretrained=base_checkpoint).build(num_classes=10)
