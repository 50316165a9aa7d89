"""Experts spread over 2 and 4 processes give the values and gradients of one process, whatever tokens each has."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.debug import CommDebugMode

from pangu_modules.llm.moge.block import MoGEBlock
from pangu_modules.llm.moge.parallel.dispatch import static_splits
from pangu_modules.llm.moge.parallel.experts import ParallelExperts, check_ep_size, expert_mesh
from pangu_modules.llm.moge.router import Router

HIDDEN, EXPERTS, GROUPS = 8, 8, 4
ROUTERS: dict[str, dict[str, Any]] = {
    "moge": {"num_experts_per_tok": 4},
    "moge, two of each group": {"num_experts_per_tok": 8},
    "topk": {"num_experts_per_tok": 3, "router": "topk"},
    "deepseek": {"num_experts_per_tok": 3, "router": "deepseek", "kept_groups": 2},
}


class Case(NamedTuple):
    """A router, the tokens of each rank, and whether all tokens want the same experts."""

    router: str
    tokens: tuple[int, ...]
    hot: bool = False
    ep_size: int | None = None


def cases(world: int) -> list[Case]:
    equal, unequal, empty = {
        2: ((3, 3), (5, 2), (6, 0)),
        4: ((2, 2, 2, 2), (3, 1, 4, 2), (0, 5, 0, 3)),
    }[world]
    found = [Case(router, tokens) for router in ROUTERS for tokens in (equal, unequal, empty)]
    found += [Case(router, tokens, hot=True) for router in ("moge", "topk") for tokens in (equal, unequal)]
    if world == 4:
        found += [Case(router, tokens, ep_size=2) for router in ("moge", "topk") for tokens in (unequal, empty)]
    return found


def block(case: Case) -> MoGEBlock:
    """Return a whole block in float64, the same on every rank."""
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "num_experts": EXPERTS, "num_groups": GROUPS}
    widths = {"moe_intermediate_size": 4, "shared_expert_intermediate_size": 0}
    module: MoGEBlock = MoGEBlock.Config.model_validate({**sizes, **widths, **ROUTERS[case.router]}).build().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def data(case: Case) -> tuple[Tensor, Tensor]:
    """Return the tokens of all ranks, and the gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    tokens, grad = torch.randn(2, sum(case.tokens), HIDDEN, dtype=torch.float64, generator=generator)
    if case.hot:
        tokens = tokens[:1] + 0.01 * tokens
    return tokens, grad


def run(module: MoGEBlock, tokens: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return the output, and the gradients of tokens and parameters."""
    tokens = tokens.clone().requires_grad_()
    output = module(tokens)
    output.backward(grad)
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "tokens": tokens.grad, **found}  # type: ignore[dict-item]


@cache
def mesh_of(ep_size: int | None) -> DeviceMesh:
    return expert_mesh(ep_size, "cpu")


def run_rank(case: Case) -> dict[str, Tensor]:
    """Return what `run` does for this rank's tokens, with its share of the experts."""
    module = block(case)
    mesh = mesh_of(case.ep_size)
    static = module.config.router == "moge"
    module.experts = ParallelExperts(module.experts, mesh, static=static)
    rank = dist.get_rank()
    start = sum(case.tokens[:rank])
    tokens, grad = (values[start : start + case.tokens[rank]] for values in data(case))
    found = run(module, tokens, grad)
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        found[name] = found[name].full_tensor()  # type: ignore[operator]
    return found


def run_static() -> dict[str, Any]:
    """Return the collectives of forward and backward where nothing about sizes is exchanged."""
    case = Case("moge", (3,) * dist.get_world_size())
    module = block(case)
    module.experts = ParallelExperts(module.experts, mesh_of(None), static=True, equal_tokens=True)
    with CommDebugMode() as collectives:
        run(module, *(values[:3] for values in data(case)))
    return {str(name): count for name, count in collectives.get_comm_counts().items()}


def run_autocast() -> dict[str, Any]:
    """Return the output of a float32 block under bfloat16 autocast, and the type in which tokens travelled."""
    case = Case("moge", (4,) * dist.get_world_size())
    module = block(case).float()
    module.experts = ParallelExperts(module.experts, mesh_of(None), static=True)
    start = 4 * dist.get_rank()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return {"output": module(data(case)[0].float()[start : start + 4])}


def run_all(world: int) -> dict[str, Any]:
    return {"cases": [run_rank(case) for case in cases(world)], "static": run_static(), "autocast": run_autocast()}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(run_all, request.param, tmp_path_factory.mktemp("ranks") / "ranks", request.param)


def test_values_and_gradients_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    world = len(ranks)
    for number, case in enumerate(cases(world)):
        parts = [found["cases"][number] for found in ranks]
        want = run(block(case), *data(case))
        for name, value in want.items():
            if name in ("output", "tokens"):
                got = torch.cat([part[name] for part in parts])
            elif name.startswith("experts."):
                got = parts[0][name] * world  # the mean over ranks; every rank has the whole
                assert all(torch.equal(part[name], parts[0][name]) for part in parts)
            else:
                got = torch.stack([part[name] for part in parts]).sum(0)
            # Sums in another order; seen 7e-15 of values to 30.
            torch.testing.assert_close(got, value, rtol=0, atol=1e-13, msg=partial("{}, {}: {}".format, case, name))


def test_static_dispatch_exchanges_no_sizes(ranks: list[dict[str, Any]]) -> None:
    """Three all-to-alls there (tokens, ids, gates), one back, and their three gradients; nothing else."""
    for found in ranks:
        assert found["static"] == {"c10d.alltoall_base_": 7}


def test_autocast(ranks: list[dict[str, Any]]) -> None:
    world = len(ranks)
    case = Case("moge", (4,) * world)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = block(case).float()(data(case)[0].float())
    got = torch.cat([found["autocast"]["output"] for found in ranks])
    torch.testing.assert_close(got, want, rtol=0, atol=0.05)  # values to 4.6; seen 0.008, rounding of bfloat16


def test_static_splits() -> None:
    assert static_splits([3, 0, 2], 2) == ([2, 2, 2], [3, 0, 2])
    assert static_splits([3, 0, 2], 1).reversed() == ([3, 0, 2], [0, 0, 0])


@pytest.mark.parametrize(
    ("fields", "ep_size", "message"),
    [
        ({}, 8, r"ep_size=8 must divide num_groups \(M\) = 4, .* allowed: 1, 2, 4$"),
        ({}, 3, "allowed: 1, 2, 4$"),
        ({"router": "topk"}, 3, r"ep_size=3 must divide num_experts \(N\) = 8; allowed: 1, 2, 4, 8"),
        ({"router": "topk"}, 8, None),
        ({}, 4, None),
    ],
)
def test_ep_size_must_leave_whole_groups(fields: dict[str, Any], ep_size: int, message: str | None) -> None:
    config = Router.Config(num_experts=8, num_groups=4, num_experts_per_tok=4, **fields)
    if message is None:
        check_ep_size(config, ep_size)
    else:
        with pytest.raises(ValueError, match=message):
            check_ep_size(config, ep_size)
