"""The routers equal one token at a time in loops, and have the properties the paper states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pangu_modules.llm.moge.router import Router
from pangu_modules.llm.moge.routing import route_moge

SIZES = [(8, 2, 2), (8, 4, 4), (16, 4, 8), (12, 3, 6), (16, 1, 3), (8, 8, 8)]


def router(num_experts: int = 8, num_groups: int = 4, num_experts_per_tok: int = 4, **fields: object) -> Router:
    torch.manual_seed(0)
    config = Router.Config(
        hidden_size=16,
        num_experts=num_experts,
        num_groups=num_groups,
        num_experts_per_tok=num_experts_per_tok,
        router_dtype="float64",
        **fields,
    )
    module: Router = config.build().double().eval()
    module.reset_parameters(std=1.0)
    return module


def tokens(number: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(number, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax_of(module: Router, token: Tensor) -> list[float]:
    logits = [sum(a * b for a, b in zip(row, token.tolist(), strict=True)) for row in module.weight.tolist()]
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def best(candidates: list[int], values: list[float], number: int) -> list[int]:
    return sorted(candidates, key=lambda expert: -values[expert])[:number]


@pytest.mark.parametrize(("num_experts", "num_groups", "num_experts_per_tok"), SIZES)
def test_moge_equals_one_token_at_a_time(num_experts: int, num_groups: int, num_experts_per_tok: int) -> None:
    module = router(num_experts, num_groups, num_experts_per_tok)
    scale = torch.rand(1, num_experts, dtype=torch.float64) + 0.5
    x = tokens()
    got = module(x, scale)
    size = num_experts // num_groups
    for row, token in enumerate(x):
        scores = softmax_of(module, token)
        ids = []
        for group in range(num_groups):
            ids += best(list(range(group * size, (group + 1) * size)), scores, num_experts_per_tok // num_groups)
        assert got.expert_ids[row].tolist() == ids
        want = torch.tensor([scores[expert] * scale[0, expert].item() for expert in ids], dtype=torch.float64)
        torch.testing.assert_close(got.weights[row], want, rtol=0, atol=1e-14)  # values to 1.4; seen 1e-15
        torch.testing.assert_close(got.scores[row], torch.tensor(scores, dtype=torch.float64), rtol=0, atol=1e-14)


def test_deepseek_equals_one_token_at_a_time() -> None:
    module = router(16, 4, 3, router="deepseek", kept_groups=2, norm_topk_prob=True, gate_scaling_factor=2.5)
    assert module.e_score_correction_bias is not None
    module.e_score_correction_bias.copy_(torch.randn(16) * 0.3)
    x = tokens()
    got = module(x)
    for row, token in enumerate(x):
        logits = [float(weight @ token) for weight in module.weight.detach()]
        sigmoids = [1 / (1 + math.exp(-logit)) for logit in logits]
        biased = [score + float(bias) for score, bias in zip(sigmoids, module.e_score_correction_bias, strict=True)]
        groups = [list(range(first, first + 4)) for first in range(0, 16, 4)]
        groups.sort(key=lambda group: -sum(sorted((biased[expert] for expert in group), reverse=True)[:2]))
        ids = best(groups[0] + groups[1], biased, 3)
        assert got.expert_ids[row].tolist() == ids
        chosen = sum(sigmoids[expert] for expert in ids)
        want = torch.tensor([2.5 * sigmoids[expert] / chosen for expert in ids], dtype=torch.float64)
        torch.testing.assert_close(got.weights[row], want, rtol=0, atol=1e-14)  # seen 2e-16


def test_deepseek_with_all_groups_is_top_k_of_the_biased_scores_and_equals_transformers() -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    module = router(16, 4, 4, router="deepseek", kept_groups=2, norm_topk_prob=True, gate_scaling_factor=2.5).float()
    config = DeepseekV3Config(
        hidden_size=16,
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=4,
        moe_intermediate_size=8,
        n_shared_experts=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    peer = DeepseekV3MoE(config).gate
    peer.load_state_dict({"weight": module.weight.detach(), "e_score_correction_bias": torch.linspace(-0.2, 0.2, 16)})
    assert module.e_score_correction_bias is not None
    module.e_score_correction_bias.copy_(peer.e_score_correction_bias)
    x = tokens(40).float()
    got = module(x)
    weights = peer_weights(peer, x)
    dense = torch.zeros(40, 16, dtype=got.weights.dtype).scatter(1, got.expert_ids, got.weights)
    torch.testing.assert_close(dense.float(), weights, rtol=0, atol=1e-6)  # seen 1.2e-7, float32


def peer_weights(peer: torch.nn.Module, x: Tensor) -> Tensor:
    """Run transformers' router, whatever it returns besides ids and weights; return gates as (T, N)."""
    outputs = [output for output in peer(x) if output.shape[-1] == 4]
    ids = next(output for output in outputs if not output.is_floating_point())
    weights = next(output for output in outputs if output.is_floating_point())
    return torch.zeros(len(x), 16).scatter(1, ids, weights.float())


@pytest.mark.parametrize(("num_experts", "num_groups", "num_experts_per_tok"), SIZES)
def test_every_row_has_as_many_ids_of_each_group(num_experts: int, num_groups: int, num_experts_per_tok: int) -> None:
    module = router(num_experts, num_groups, num_experts_per_tok)
    groups = module(tokens(50)).expert_ids // (num_experts // num_groups)
    counts = torch.stack([(groups == group).sum(-1) for group in range(num_groups)], -1)
    assert (counts == num_experts_per_tok // num_groups).all()


def test_a_constant_on_all_logits_changes_nothing_and_one_on_a_group_changes_gates_only() -> None:
    logits = torch.randn(20, 8, dtype=torch.float64)
    plain, shifted = route_moge(logits, 4, 4), route_moge(logits + 3.0, 4, 4)
    assert torch.equal(plain.expert_ids, shifted.expert_ids)
    torch.testing.assert_close(plain.weights, shifted.weights, rtol=0, atol=1e-14)  # seen 2e-16
    one = logits.clone()
    one[:, 2:4] += 1.0
    coupled = route_moge(one, 4, 4)
    assert torch.equal(plain.expert_ids, coupled.expert_ids)
    assert (coupled.weights[:, 1] > plain.weights[:, 1]).all()
    assert (coupled.weights[:, [0, 2, 3]] < plain.weights[:, [0, 2, 3]]).all()


def test_one_group_is_plain_top_k() -> None:
    x = tokens(30)
    moge, plain = router(8, 1, 3)(x), router(8, 1, 3, router="topk")(x)
    assert torch.equal(moge.expert_ids, plain.expert_ids)
    assert torch.equal(moge.weights, plain.weights)


def test_permuting_experts_inside_a_group_permutes_ids() -> None:
    logits = torch.randn(20, 8)
    order = torch.tensor([1, 0, 2, 3, 5, 4, 7, 6])
    permuted = route_moge(logits[:, order], 4, 4)
    plain = route_moge(logits, 4, 4)
    assert torch.equal(order[permuted.expert_ids], plain.expert_ids)
    torch.testing.assert_close(permuted.weights, plain.weights, rtol=0, atol=1e-7)  # seen 3e-8: the sum's order


def test_the_gates_have_a_gradient_where_one_expert_is_taken_from_a_group() -> None:
    module = router(6, 3, 3)
    x, scale = tokens(4).requires_grad_(), torch.rand(1, 6, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(4, 3, dtype=torch.float64)

    def loss(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        routing = torch.func.functional_call(module, {"weight": weight}, (x, scale))
        return (routing.weights * factors).sum()

    assert torch.autograd.gradcheck(loss, (x, scale, module.weight.detach().requires_grad_()))


def test_identity_of_the_ascend_routing_operator() -> None:
    """Top-k of a softmax inside each group times the group's share is the gate by the softmax over all."""
    logits = torch.randn(30, 12, dtype=torch.float64)
    inside, local = logits.view(90, 4).softmax(-1).topk(2, dim=-1)
    share = logits.view(30, 3, 4).logsumexp(-1).softmax(-1)
    want = route_moge(logits, 3, 6)
    torch.testing.assert_close((inside.view(30, 3, 2) * share[..., None]).flatten(1), want.weights, rtol=0, atol=1e-14)
    assert torch.equal((local.view(30, 3, 2) + torch.tensor([0, 4, 8])[:, None]).flatten(1), want.expert_ids)


def test_voted_experts_are_the_most_wanted_of_each_group() -> None:
    module = router(8, 2, 2, num_voted_experts=2)
    x = tokens(50)
    every = router(8, 2, 2)(x).expert_ids
    got = module(x).expert_ids
    votes = torch.bincount(every.flatten(), minlength=8).view(2, 4)
    for group in range(2):
        kept = set((votes[group].argsort(descending=True, stable=True)[:2] + 4 * group).tolist())
        assert set(got[:, group].tolist()) <= kept
    assert torch.equal(router(8, 2, 2, num_voted_experts=4)(x).expert_ids, every)


def test_voted_experts_are_for_inference() -> None:
    with pytest.raises(ValueError, match=r"num_voted_experts=2 .* call model.eval\(\)"):
        router(8, 2, 2, num_voted_experts=2).train()(tokens())


def test_jitter_is_for_training() -> None:
    module = router(router_jitter=0.3)
    x = tokens()
    assert torch.equal(module(x).logits, module(x).logits)
    assert not torch.equal(module.train()(x).logits, module(x).logits)


def test_the_bias_moves_towards_balance() -> None:
    module = router(4, 2, 2, router="deepseek", bias_update_speed=0.5)
    module.update_bias(torch.tensor([9, 1, 5, 5]))
    assert module.e_score_correction_bias is not None
    assert module.e_score_correction_bias.tolist() == [-0.5, 0.5, 0, 0]
    with pytest.raises(ValueError, match="no selection bias"):
        router().update_bias(torch.ones(8))


def test_logits_are_float32_under_autocast() -> None:
    module = Router.Config(hidden_size=16, num_experts=8, num_groups=4, num_experts_per_tok=4).build()
    x = torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
    assert got.logits.dtype == torch.float32
    assert torch.equal(got.logits, module(x).logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unusable_logits_name_the_layer(value: float) -> None:
    config = Router.Config(hidden_size=16, num_experts=8, num_groups=4, num_experts_per_tok=4)
    x = torch.randn(5, 16)
    x[3, 2] = value
    with pytest.raises(ValueError, match="router of layer 7: logits are NaN"):
        Router(config, layer_idx=7)(x)
    Router(config.derive(check_logits=False), layer_idx=7)(x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 10}, r"num_experts \(N\) must be divisible by num_groups \(M\): 10 .* 4 .* such as 12"),
        ({"num_experts_per_tok": 6}, r"num_experts_per_tok \(K\) = 6 .* num_groups \(M\) = 4.* nearby values: 4 or 8"),
        ({"num_experts_per_tok": 12}, r"num_experts_per_tok \(K\) = 12 .* at most num_experts \(N\) = 8"),
        ({"num_experts_per_tok": 2}, r"nearby values: 4"),
        ({"router": "topk", "num_experts_per_tok": 9}, r"\(K\) = 9 must not exceed num_experts \(N\) = 8"),
        ({"router": "deepseek", "kept_groups": 5}, r"kept_groups=5 must not exceed num_groups \(M\) = 4"),
        ({"router": "deepseek", "kept_groups": 1}, r"more than the 2 experts of kept_groups=1"),
        ({"num_voted_experts": 3}, r"num_voted_experts=3 must lie between K/M = 1.* and N/M = 2"),
        ({"router": "topk", "num_voted_experts": 1}, r"num_voted_experts=1 is for router='moge'"),
        ({"router": "hash"}, "router"),
        ({"router_jitter": -1.0}, "router_jitter"),
    ],
)
def test_bad_sizes(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Router.Config(**{"hidden_size": 16, "num_experts": 8, "num_groups": 4, "num_experts_per_tok": 4, **fields})
