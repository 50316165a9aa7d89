"""Local weights of timm models: wrappers come off, and what is missing is never random, also where the head is new."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from pangu_modules.vision.backbones import create_backbone

NAME = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "depth": 2}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7, **SIZES).state_dict()


def load(state, folder, num_classes):
    save_file(state, folder / "weights.safetensors")
    return create_backbone(NAME, pretrained=str(folder / "weights.safetensors"), num_classes=num_classes, **SIZES)


@pytest.mark.parametrize("num_classes", [7, 3])
@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "base_model.model."])
def test_weights_are_the_files_own(state, tmp_path, num_classes, prefix):
    model = load({prefix + name: tensor for name, tensor in state.items()}, tmp_path, num_classes)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items() if not name.startswith("head."))
    assert torch.equal(found["head.weight"], state["head.weight"]) == (num_classes == 7)


@pytest.mark.parametrize("num_classes", [7, 3])
def test_weights_that_do_not_fit_are_refused(state, tmp_path, num_classes):
    lacking = {name: tensor for name, tensor in state.items() if "blocks.1.attn.qkv" not in name}
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight"):
        load(lacking, tmp_path, num_classes)
    with pytest.raises(ValueError, match="no weights that fit"):
        load({f"foo.{name}": tensor for name, tensor in state.items()}, tmp_path, num_classes)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert torch.equal(load(headless, tmp_path, num_classes).state_dict()["norm.weight"], state["norm.weight"])


def test_the_check_draws_no_random_numbers(state, tmp_path):
    heads = []
    for other in (state, {**state, "head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}):
        torch.manual_seed(1)
        heads.append(load(other, tmp_path, 3).state_dict()["head.weight"])
    assert torch.equal(*heads)
