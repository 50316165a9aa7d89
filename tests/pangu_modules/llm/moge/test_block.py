"""The block adds routed experts and the shared one, and its record neither copies nor pickles a graph."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pangu_modules.llm.moge.block import MoGEBlock, moge_blocks, recorded_routings


def block(**fields: object) -> MoGEBlock:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_experts": 6, "num_groups": 3, "num_experts_per_tok": 3}
    config = MoGEBlock.Config(
        **{**sizes, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 5, **fields}  # type: ignore[arg-type]
    )
    module: MoGEBlock = config.build(layer_idx=3).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def by_hand(module: MoGEBlock, token: Tensor) -> Tensor:
    scores = torch.softmax(module.gate.weight @ token, 0)
    total = torch.zeros_like(token)
    for group in range(3):
        expert = 2 * group + int(scores[2 * group : 2 * group + 2].argmax())
        gate, up = (module.experts.gate_up_proj[expert] @ token).chunk(2)
        scale = 1.0 if module.router_scale is None else module.router_scale[0, expert]
        total = total + scores[expert] * scale * (module.experts.down_proj[expert] @ (F.silu(gate) * up))
    if module.shared_expert is not None:
        shared = module.shared_expert
        inner = F.silu(shared.gate_proj.weight @ token) * (shared.up_proj.weight @ token)
        total = total + shared.down_proj.weight @ inner
    return total


@pytest.mark.parametrize("fields", [{}, {"router_scale": False}, {"shared_expert_intermediate_size": 0}])
def test_equals_one_token_by_hand(fields: dict[str, object]) -> None:
    module = block(**fields)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    want = torch.stack([by_hand(module, token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(module(x), want, rtol=0, atol=1e-14)  # values to 5; seen 2e-15


def test_gradcheck() -> None:
    module = block()
    names = [name for name, _ in module.named_parameters()]
    leaves = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *leaves), fast_mode=True)


def test_no_token_has_gradients_too() -> None:
    module = block()
    output = module(torch.zeros(0, 8, dtype=torch.float64, requires_grad=True))
    assert output.shape == (0, 8)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_record_stays_behind_when_the_block_is_copied() -> None:
    module = nn.Sequential(block())
    with pytest.raises(ValueError, match="no forward pass yet"):
        recorded_routings(module)
    module(torch.randn(4, 8, dtype=torch.float64))
    (routing,) = recorded_routings(module)
    assert routing.scores.requires_grad
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), module.parameters(), strict=True))
        assert [found.record.routing for _, found in moge_blocks(twin)] == [None]
    with pytest.raises(ValueError, match="no MoGEBlock"):
        recorded_routings(nn.Linear(2, 2))


def test_nan_names_the_layer() -> None:
    with pytest.raises(ValueError, match="router of layer 3: logits are NaN"):
        block()(torch.full((2, 8), torch.nan, dtype=torch.float64))
