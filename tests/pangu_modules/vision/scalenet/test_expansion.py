"""ScaleNet's expansion against a reference that loops over layer instances and attention heads."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.layers import DropPath
from torch import Tensor, nn

from pangu_modules.training.structure import find_plan, plan_from
from pangu_modules.vision.scalenet.config import ScaleNetConfig
from pangu_modules.vision.scalenet.expansion import added_parameters, expand_depth, layer_mapping
from pangu_modules.vision.scalenet.plan import ScaleNetPlan
from pangu_modules.vision.scalenet.sharing import AdaptedModule, ParallelAdapter, pretrained_parameters

WIDTH, HEADS, DEPTH = 16, 2, 3
SHARED = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def tiny_vit(**arguments) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 8, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "in_chans": 1}
    return timm.create_model("vit_tiny_patch16_224", **{**small, "num_classes": 5, **arguments}).double().eval()


def randomise(model: nn.Module) -> nn.Module:
    """Move every parameter away from its start, so that zeros and copies do not hide an error."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def images(batch_size: int = 3) -> Tensor:
    return torch.randn(batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# The reference: tensors by name, loops over instances and heads, no module of the expansion.


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    qkv = x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]
    head_dim = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        query, key, value = (
            qkv[..., part * WIDTH + head * head_dim : part * WIDTH + (head + 1) * head_dim] for part in range(3)
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(head_dim)
        heads.append(torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True) @ value)
    return torch.cat(heads, -1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]


def mlp(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    hidden = gelu(x @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"])
    return hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


def adapter(x: Tensor, state: dict[str, Tensor], prefix: str, config: ScaleNetConfig) -> Tensor | float:
    if f"{prefix}.adapter.up.weight" not in state:
        return 0.0
    hidden = x @ state[f"{prefix}.adapter.down.weight"].T + state[f"{prefix}.adapter.down.bias"]
    hidden = gelu(hidden) if config.adapter_activation == "gelu" else hidden
    scale = state.get(f"{prefix}.adapter.scale", config.adapter_scale)
    return scale * (hidden @ state[f"{prefix}.adapter.up.weight"].T + state[f"{prefix}.adapter.up.bias"])


def reference(
    x: Tensor, model: nn.Module, weights: list[dict[str, Tensor]], mapping: list[int], config: ScaleNetConfig
) -> Tensor:
    """Logits, given the shared weights of every instance apart: ``weights[l']`` for instance l'."""
    state = dict(model.named_parameters())
    x = state["patch_embed.proj.weight"].reshape(WIDTH, -1) @ nn.functional.unfold(x, 4, stride=4)
    x = x.transpose(1, 2) + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for instance, layer in enumerate(mapping):
        first = mapping.index(layer)
        norms = first if config.share_norms else instance
        for norm, child, branch in (("norm1", "attn", attention), ("norm2", "mlp", mlp)):
            prefix = f"blocks.{instance}.{child}"
            normed = layer_norm(x, state[f"blocks.{norms}.{norm}.weight"], state[f"blocks.{norms}.{norm}.bias"])
            residual = branch(normed, weights[instance]) + adapter(normed, state, prefix, config)
            gate = state.get(f"blocks.{instance}.drop_path{norm[-1]}.gate", 1.0)
            x = x + gate * residual
    x = layer_norm(x[:, 0], state["norm.weight"], state["norm.bias"])
    return x @ state["head.weight"].T + state["head.bias"]


def instance_weights(model: nn.Module, mapping: list[int]) -> list[dict[str, Tensor]]:
    """A leaf tensor of its own for every shared tensor of every instance."""
    state = model.state_dict()
    found = []
    for layer in mapping:
        block = f"blocks.{mapping.index(layer)}."
        names = {name: f"{block}{name}" for part in SHARED for name in (f"{part}.weight", f"{part}.bias")}
        moved = {name: f"{block}{name.replace('.', '.module.', 1)}" for name in names}
        found.append(
            {name: state.get(names[name], state.get(moved[name])).clone().requires_grad_(True) for name in names}
        )
    return found


CONFIGS = {
    "default": {},
    "partial": {"target_depth": 5},
    "adjacent": {"mapping": "adjacent", "target_depth": 5},
    "reversed": {"mapping": "reversed", "depth_factor": 3},
    "explicit": {"mapping": "explicit", "explicit_layers": (2, 0, 2, 1, 0)},
    "added_linear": {"adapter_instances": "added", "adapter_activation": "none", "adapter_scale": 0.5},
    "mlp_learnable": {"adapter_on": ("mlp",), "learnable_adapter_scale": True, "adapter_scale": 2.0},
    "no_adapters": {"adapter_on": (), "share_norms": True},
    "identity": {"identity_start": True, "share_norms": True},
    "adapters_only": {"depth_factor": 1},
}


@pytest.fixture(params=CONFIGS, ids=list(CONFIGS))
def expanded(request):
    config = ScaleNetConfig(adapter_rank=4, **CONFIGS[request.param])
    return randomise(expand_depth(tiny_vit(), config)), config, layer_mapping(config, DEPTH)


def test_forward_equals_a_loop_over_instances(expanded):
    model, config, mapping = expanded
    want = reference(images(), model, instance_weights(model, mapping), mapping, config)
    torch.testing.assert_close(model(images()), want, rtol=0, atol=1e-13)  # measured 1e-15


def test_gradient_of_a_shared_weight_is_the_sum_over_its_instances(expanded):
    model, config, mapping = expanded
    weights = instance_weights(model, mapping)
    seed = torch.randn(3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (model(images()) * seed).sum().backward()
    (reference(images(), model, weights, mapping, config) * seed).sum().backward()
    for layer in range(DEPTH):
        block = model.blocks[mapping.index(layer)]
        users = [weights[instance] for instance, used in enumerate(mapping) if used == layer]
        for name in users[0]:
            want = torch.stack([user[name].grad for user in users]).sum(0)
            child, _, inner = name.partition(".")
            module = block.get_submodule(child)
            got = (module.module if isinstance(module, AdaptedModule) else module).get_parameter(inner).grad
            torch.testing.assert_close(got, want, rtol=0, atol=1e-13)  # measured 5e-15


def test_mappings_written_out():
    def mapping(**fields):
        return layer_mapping(ScaleNetConfig(**fields), 3)

    assert mapping() == [0, 1, 2, 0, 1, 2]
    assert mapping(target_depth=5) == [0, 1, 2, 0, 1]
    assert mapping(mapping="adjacent", target_depth=5) == [0, 0, 1, 1, 2]
    assert mapping(mapping="reversed", depth_factor=3) == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert mapping(mapping="explicit", explicit_layers=(2, 0, 1, 1)) == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "width", "base", "expanded"),
    [
        ("deit_tiny_patch16_224", 192, 5_717_416, 6_031_528),
        ("deit_small_patch16_224", 384, 22_050_664, 22_678_120),
        ("deit_base_patch16_224", 768, 86_567_656, 89_002_216),
    ],
)
def test_deit_doubled_has_the_parameters_of_the_formula(name, width, base, expanded):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert count(model) == base
    config = ScaleNetConfig()
    expand_depth(model, config)
    assert len(model.blocks) == len(model.feature_info) == 24
    assert count(model) == base + added_parameters(config, width=width, base_depth=12) == expanded


@pytest.mark.parametrize("share_weights", [True, False])
def test_every_option_adds_what_the_formula_says(expanded, share_weights):
    config = expanded[1].derive(share_weights=share_weights)
    added = count(expand_depth(tiny_vit(), config)) - count(tiny_vit())
    assert added == added_parameters(config, width=WIDTH, base_depth=DEPTH)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("backbone", ["vit", "swin", "post-norm"])
def test_identity_start_is_the_base_at_step_0(backbone):
    model, x = make(backbone)
    want = model(x)
    expand_depth(model, ScaleNetConfig(identity_start=True, adapter_rank=2))
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-12)  # measured 0
    assert (randomise(model)(x) - want).abs().max() > 1e-3


def make(backbone: str) -> tuple[nn.Module, Tensor]:
    if backbone == "swin":
        return tiny_swin(), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    return tiny_vit(
        **({"block_fn": timm.models.vision_transformer.ResPostBlock} if backbone != "vit" else {})
    ), images()


def test_adapters_start_at_zero_and_own_norms_as_the_base():
    base = randomise(tiny_vit())
    twice = expand_depth(randomise(tiny_vit()), ScaleNetConfig(adapter_rank=4))
    x = base.patch_embed(images())
    x = torch.cat([base.cls_token.expand(3, -1, -1), x], 1) + base.pos_embed
    for block in [*base.blocks, *base.blocks]:
        x = block(x)
    torch.testing.assert_close(twice(images()), base.head(base.norm(x)[:, 0]), rtol=0, atol=1e-12)
    adapters = [module for module in twice.modules() if isinstance(module, ParallelAdapter)]
    assert len(adapters) == 2 * 2 * DEPTH
    assert not any(module.up.weight.any() for module in adapters)
    assert twice.blocks[3].norm1.weight.data_ptr() != twice.blocks[0].norm1.weight.data_ptr()


def tiny_swin(**arguments) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    name = "swin_tiny_patch4_window7_224"
    return timm.create_model(name, **{**small, "in_chans": 1, "num_classes": 5, **arguments}).double().eval()


def test_swin_stages_run_their_blocks_again_with_their_shift():
    base = randomise(tiny_swin())
    model = expand_depth(randomise(tiny_swin()), ScaleNetConfig(adapter_rank=2, target_depth=None, depth_factor=2))
    shifts = [[block.shift_size for block in layer.blocks] for layer in model.layers]
    assert shifts == [[(0, 0), (2, 2), (0, 0), (2, 2)]] * 2
    x = base.patch_embed(torch.ones(1, 1, 32, 32, dtype=torch.float64).cumsum(-1))
    for layer in base.layers:
        x = layer.downsample(x)
        for _ in range(2):
            for block in layer.blocks:
                x = block(x)
    want = base.head(base.norm(x))
    got = model(torch.ones(1, 1, 32, 32, dtype=torch.float64).cumsum(-1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)  # measured 0


def test_swin_changes_its_input_size_after_the_expansion():
    model = expand_depth(randomise(tiny_swin()), ScaleNetConfig(adapter_rank=2))
    model.set_input_size(img_size=48)
    assert model(torch.randn(1, 1, 48, 48, dtype=torch.float64)).shape == (1, 5)
    assert model.layers[0].blocks[2].input_resolution == (24, 24)


@pytest.mark.parametrize("given", [0.3, None])
def test_stochastic_depth_is_a_ramp_over_all_instances(given):
    base = tiny_vit(drop_path_rate=0.2 if given is None else 0.0)
    model = expand_depth(base, ScaleNetConfig(adapter_rank=4, identity_start=True, drop_path=given))
    rates = [
        max((m.drop_prob for m in block.modules() if isinstance(m, DropPath)), default=0) for block in model.blocks
    ]
    last = 0.2 if given is None else given
    assert rates == pytest.approx([last * index / 5 for index in range(6)])


def test_timm_features_and_checkpointing_see_all_instances():
    model = randomise(expand_depth(tiny_vit(), ScaleNetConfig(adapter_rank=4)))
    final, maps = model.forward_intermediates(images(), indices=[2, 5])
    assert [tuple(map_.shape) for map_ in maps] == [(3, WIDTH, 2, 2)] * 2
    torch.testing.assert_close(final, model.forward_features(images()))
    assert not torch.equal(maps[0], maps[1])
    model(images()).sum().backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.train().set_grad_checkpointing()
    model(images()).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=0, atol=1e-12)


def test_layer_scale_is_per_instance():
    model = expand_depth(tiny_vit(init_values=0.1), ScaleNetConfig(adapter_rank=4, share_norms=True))
    assert model.blocks[3].ls1.gamma.data_ptr() != model.blocks[0].ls1.gamma.data_ptr()
    assert model.blocks[3].norm1.weight.data_ptr() == model.blocks[0].norm1.weight.data_ptr()


def test_pretrained_parameters_are_the_bases_without_its_head():
    base = dict(tiny_vit().named_parameters())
    for options in (
        {},
        {"adapter_on": (), "identity_start": True},
        {"adapter_instances": "added", "share_norms": True},
    ):
        model = expand_depth(tiny_vit(), ScaleNetConfig(adapter_rank=4, **options))
        names = {name.replace(".module.", ".") for name in pretrained_parameters(model)}
        assert names == {name for name in base if not name.startswith("head.")}


def test_plan_survives_plain_data_and_expands_the_modules_model():
    plan = ScaleNetPlan(expansion=ScaleNetConfig(depth_factor=2, adapter_rank=4))
    again = plan_from(plan.plain())
    assert again == plan
    assert find_plan((again,), "scalenet") is again
    holder = nn.Module()
    holder.model = tiny_vit()
    again.apply(holder)
    assert len(holder.model.blocks) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth_factor": 2, "target_depth": 4}, "depth_factor=2 and target_depth=4 both set the depth"),
        ({"mapping": "explicit"}, "mapping='explicit' and explicit_layers go together"),
        ({"explicit_layers": (0, 1)}, "mapping='explicit' and explicit_layers go together"),
        ({"mapping": "explicit", "explicit_layers": (0,), "depth_factor": 2}, "explicit_layers sets the depth"),
        ({"adapter_rank": 0}, r"at least 1, got 0; for no adapters set adapter_on=\[\]"),
        ({"adapter_on": ("mlp", "mlp")}, "names a sub-module twice"),
        ({"adapter_on": ("head",)}, "'attn' or 'mlp'"),
        ({"depth_factor": 0}, "greater than 0"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"depth": 2}, "unknown field 'depth'.*Did you mean"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ScaleNetConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_depth": 2}, "target_depth is 2, but the model has 3 blocks already"),
        ({"mapping": "explicit", "explicit_layers": (0, 1, 2, 3)}, "names layer 3, but the model has layers 0 to 2"),
        ({"mapping": "explicit", "explicit_layers": (0, 1, 1)}, "leaves out layer 2"),
        ({"adapter_rank": 17}, "adapter_rank is 17, larger than the width 16 of blocks.0.attn; choose at most 16"),
        ({"depth_factor": 1, "adapter_on": ()}, "the expansion adds nothing: depth stays 3"),
        ({"depth_factor": 1, "adapter_instances": "added"}, "the expansion adds nothing"),
    ],
)
def test_expansions_that_do_not_fit_are_refused_and_change_nothing(fields, message):
    model = tiny_vit()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        expand_depth(model, ScaleNetConfig(**{"adapter_rank": 4, **fields}))
    assert list(model.state_dict()) == names


def test_models_that_cannot_be_expanded_are_refused():
    def refused(model, message, **fields):
        with pytest.raises(ValueError, match=message):
            expand_depth(model, ScaleNetConfig(**{"adapter_rank": 4, **fields}))

    with torch.device("meta"):
        refused(timm.create_model("resnet10t"), "no stack of residual blocks found in ResNet.*found conv1, layer1")
        refused(nn.Linear(2, 2), "found no Sequential or ModuleList at all")
        refused(timm.create_model("tf_efficientnet_lite0"), "its members are containers")
        refused(timm.create_model("convnext_atto"), "adapter_on names 'attn', but ConvNeXtBlock has .*mlp")
        refused(timm.create_model("vit_small_patch16_rope_mixed_224"), "Eva has rotary embeddings per block")
        refused(timm.create_model("hiera_tiny_224"), "blocks of 'blocks' differ: number 1")
    refused(tiny_swin(), "need one stack of blocks, this model has layers.0.blocks, layers.1.blocks", target_depth=8)
    refused(expand_depth(tiny_vit(), ScaleNetConfig(adapter_rank=4)), "expanded already")
    blocks = nn.Module()
    blocks.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2) for _ in range(2)])
    refused(blocks, "act on the children called drop_path", adapter_on=(), identity_start=True)


@pytest.mark.parametrize("training", [True, False])  # in evaluation these blocks read their children's weights directly
def test_blocks_of_another_library_are_expanded(training):
    torch.manual_seed(0)
    model = nn.Module()
    model.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(2)]).double()
    model.train(training)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    want = model.blocks(model.blocks(x))
    names = set(model.state_dict())
    expand_depth(model, ScaleNetConfig(adapter_on=()))
    torch.testing.assert_close(model.blocks(x), want, rtol=0, atol=1e-12)  # measured 0
    added = {
        f"blocks.{instance}.norm{index}.{kind}"
        for instance in (2, 3)
        for index in (1, 2)
        for kind in ("weight", "bias")
    }
    assert set(model.state_dict()) == names | added


@pytest.mark.parametrize(("init", "numerator"), [("kaiming", 6.0), ("linear", 1.0)])
def test_adapters_first_layer_fills_its_range(init: str, numerator: float) -> None:
    config = ScaleNetConfig(adapter_rank=8, adapter_init=init)
    weights = torch.cat([ParallelAdapter(24, config).down.weight.flatten() for _ in range(20)])
    bound = (numerator / 24) ** 0.5
    assert 0.98 * bound < weights.abs().max() <= bound  # 3840 uniform draws: none above 0.98 has chance 2e-34
    assert abs(weights.mean()) < 0.05 * bound
