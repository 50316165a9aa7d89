"""Copies of a deepened model share weights among their own layers, never with the original."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pangu_modules.vision.scalenet.config import ScaleNetConfig
from pangu_modules.vision.scalenet.expansion import expand_depth
from pangu_modules.vision.scalenet.sharing import AdaptedModule, SharedModule


def deepened(seed: int = 0, **fields) -> nn.Module:
    torch.manual_seed(seed)
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
    model = timm.create_model("vit_tiny_patch16_224", **small, num_classes=5)
    expand_depth(model, ScaleNetConfig(adapter_rank=4, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded_into_another(model: nn.Module) -> nn.Module:
    other = deepened(seed=1)
    other.load_state_dict(model.state_dict())
    return other


def averaged(model: nn.Module) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    return average.module


def moved_and_materialised(model: nn.Module) -> nn.Module:
    other = deepened(seed=1).to("meta").to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    return other


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "load_state_dict": loaded_into_another,
    "average": averaged,
    "to_empty": moved_and_materialised,
}


WEIGHTS = ("attn.qkv.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc2.weight")


def weight(model: nn.Module, block: int, path: str) -> nn.Parameter:
    """Return the tensor that a block's forward uses."""
    child, _, rest = path.partition(".")
    module = model.blocks[block].get_submodule(child)
    while isinstance(module, AdaptedModule | SharedModule):
        module = module.resolve()
    return module.get_parameter(rest)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=list(COPIES))
def test_a_copy_shares_inside_itself_alone(make_copy):
    model = deepened()
    twin = make_copy(model)
    for owner in (0, 1):
        for path in WEIGHTS:
            assert weight(twin, owner, path).data_ptr() == weight(twin, owner + 2, path).data_ptr()
            assert weight(twin, owner, path).data_ptr() != weight(model, owner, path).data_ptr()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        weight(twin, 0, "attn.qkv.weight").zero_()
    assert weight(model, 2, "attn.qkv.weight").any()
    assert not torch.equal(twin(x), model(x))


def test_average_of_two_models_is_the_average_of_each_tensor_once():
    model = deepened()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    before = weight(model, 2, "mlp.fc1.weight").detach().clone()
    with torch.no_grad():
        weight(model, 0, "mlp.fc1.weight").add_(1.0)
    average.update_parameters(model)
    torch.testing.assert_close(weight(average.module, 2, "mlp.fc1.weight").detach(), before + 0.5)


def test_parameters_and_state_dict_hold_each_tensor_once():
    model = deepened()
    parameters = list(model.parameters())
    assert len(parameters) == len({parameter.data_ptr() for parameter in parameters})
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not [name for name in model.state_dict() if name.startswith(("blocks.2", "blocks.3")) and ".qkv." in name]


def test_a_module_replaced_at_its_owner_is_replaced_everywhere():
    model = deepened(adapter_on=())
    model.blocks[0].mlp = nn.Linear(16, 16)
    x = torch.randn(2, 5, 16)
    assert torch.equal(model.blocks[2].mlp(x), model.blocks[0].mlp(x))


def test_a_shared_module_answers_for_public_attributes_only():
    model = deepened()
    assert model.blocks[2].attn.num_heads == 2
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.blocks[2].attn.no_such_thing
    assert "_source" not in model.blocks[0].attn.__dict__
    with pytest.raises(AttributeError, match="_source"):
        _ = model.blocks[0].attn._source


@pytest.mark.slow  # compiles
def test_torch_compile_traces_the_whole_model_without_a_break():
    model, x = deepened(identity_start=True), torch.randn(2, 1, 8, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)  # measured 0
    compiled(x).square().sum().backward()
    compiled_grad = weight(model, 2, "attn.qkv.weight").grad.clone()
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(compiled_grad, weight(model, 2, "attn.qkv.weight").grad, rtol=1e-5, atol=1e-5)


SHARDED = """
    import sys, torch, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    sys.path.insert(0, {folder!r})
    from test_sharing import deepened
    rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    plain, sharded = deepened(), deepened()
    if {apart}:
        for block in sharded.blocks[:2]:
            fully_shard(block.attn.module, mesh=mesh)
            fully_shard(block.mlp.module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain(x).square().mean().backward()
    share = x.chunk(world)[rank]
    sharded(share).square().mean().backward()
    for (name, ours), (_, theirs) in zip(sharded.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    dist.destroy_process_group()
"""


@pytest.mark.slow  # starts two processes
@pytest.mark.parametrize("apart", [False, True])
def test_two_sharded_processes_have_the_gradients_of_one(tmp_path, apart):
    folder = os.path.dirname(__file__)
    script = textwrap.dedent(SHARDED.format(folder=folder, apart=apart))
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen([*command, str(rank), "2", str(tmp_path / "store")]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
