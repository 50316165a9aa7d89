"""ShapePlan: rebuilding the shapes of a pruned model on a fresh one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pangu_modules.llm.pruning import surgery
from pangu_modules.llm.pruning.plan import LayerSizes, ShapePlan
from pangu_modules.training.structure import plan_from

TOKENS = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(3))


def prune(model):
    """Layers, groups, queries, channels, hidden channels and biases, all uneven."""
    surgery.keep_layers(model, [0, 1, 3])
    surgery.keep_kv_groups(model.model.layers[0], [1])
    surgery.keep_query_heads(model.model.layers[1], [0, 3, 4])
    surgery.keep_channels(model.model.layers[2], [3, 4, 25])
    surgery.keep_hidden(model, range(1, 20))
    surgery.add_output_biases(model.model.layers[1], attention=False)
    surgery.refresh_config(model)
    return model


@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "qwen3", "mistral"])
def test_a_fresh_model_with_the_plan_takes_the_pruned_weights(tiny_model, family):
    pruned = prune(tiny_model(family, tied=True))
    plan = plan_from(ShapePlan.of(pruned, kept_layers=(0, 1, 3), source="prune").plain())  # as from a checkpoint
    fresh = SimpleNamespace(model=tiny_model(family, tied=True))
    plan.apply(fresh)
    fresh.model.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.model(TOKENS).logits, pruned(TOKENS).logits)
    assert fresh.model.config.to_dict() == pruned.config.to_dict()


def test_a_second_application_changes_nothing(tiny_model):
    pruned = prune(tiny_model("qwen3"))
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    ShapePlan.of(pruned, kept_layers=(0, 1, 3)).apply(SimpleNamespace(model=pruned))
    after = pruned.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_plan_works_without_weights(tiny_model):
    pruned = prune(tiny_model("llama", tied=True))
    with torch.device("meta"):
        import transformers

        fresh = transformers.LlamaForCausalLM(tiny_model("llama", tied=True).config)
    ShapePlan.of(pruned, kept_layers=(0, 1, 3)).apply(SimpleNamespace(model=fresh))
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == {
        name: tensor.shape for name, tensor in pruned.state_dict().items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 4, "num_heads": 8}, r"layer 1: the plan wants num_kv_heads=4, the layer has 3"),
        ({"num_kv_heads": 2, "num_heads": 6}, r"layer 1: the plan wants query heads per group=3, the layer has 2"),
        ({"intermediate_size": 29}, r"layer 1: the plan wants intermediate_size=29, the layer has 28"),
    ],
)
def test_a_model_too_small_for_the_plan_is_refused(tiny_model, changes, message):
    model = tiny_model("llama")
    sizes = LayerSizes.of(model.model.layers[0])
    plan = ShapePlan(hidden_size=24, layers=(sizes, sizes.derive(**changes), sizes, sizes), kept_layers=(0, 1, 2, 3))
    with pytest.raises(ValueError, match=message):
        plan.apply(SimpleNamespace(model=model))


def test_inconsistent_plans_are_refused():
    with pytest.raises(ValueError, match="num_heads=5 is not a multiple of num_kv_heads=2"):
        LayerSizes(num_heads=5, num_kv_heads=2, intermediate_size=8)
    sizes = LayerSizes(num_heads=4, num_kv_heads=2, intermediate_size=8)
    with pytest.raises(ValueError, match="2 kept_layers for 1 layers"):
        ShapePlan(hidden_size=8, layers=(sizes,), kept_layers=(0, 1))
