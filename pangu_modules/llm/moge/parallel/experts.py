"""Spreading a model with mixtures over processes: experts by expert parallelism, all else by FSDP2.

Both are DTensors on one mesh ("data_parallel", "expert_parallel") with the same placements: split along the first
dimension over the expert-parallel processes, and equal on their data-parallel replicas. Clipping by norm, optimizers
and checkpoints therefore see nothing but parameters of one kind. Every process has a batch of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from pangu_modules.llm.moge.block import MoGEBlock, moge_blocks
from pangu_modules.llm.moge.experts import GroupedExperts, compute_dtype, experts_forward
from pangu_modules.llm.moge.parallel.dispatch import counted_dispatch, static_dispatch
from pangu_modules.llm.moge.router import Router

REPLICAS, SHARDS = MESH_NAMES = ("data_parallel", "expert_parallel")


class ParallelExperts(nn.Module):
    """The share of a layer's routed experts that this process holds; stands in a block for `GroupedExperts`.

    Its parameters have the names and, as DTensors, the shapes of all experts. Their gradients are the mean over all
    processes of the mesh, as those of data parallelism are.

    Args:
        experts: all experts of the layer, with the same values on every process.
        mesh: from `expert_mesh`.
        static: whether every token has as many experts on each process: a MoGE router, and whole groups per process.
        equal_tokens: see `static_dispatch`.
    """

    def __init__(self, experts: GroupedExperts, mesh: DeviceMesh, *, static: bool, equal_tokens: bool = False) -> None:
        super().__init__()
        self.mesh = mesh
        self.static, self.equal_tokens = static, equal_tokens
        self.num_experts, self.num_groups = experts.num_experts, experts.num_groups
        self.implementation = experts.implementation
        self.gate_up_proj = _shard(experts.gate_up_proj, mesh)
        self.down_proj = _shard(experts.down_proj, mesh)

    def forward(self, hidden_states: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the gated sum of each token's experts, (T, h), wherever they are; arguments as of `GroupedExperts`.

        Every process must call it, with T = 0 where it has no token.
        """
        gate_up, down = self._local(self.gate_up_proj), self._local(self.down_proj)
        tokens = hidden_states.to(compute_dtype(hidden_states, gate_up))  # the narrower type travels
        num_groups = self.num_groups // self.mesh[SHARDS].size() if self.static else 1

        def local_experts(rows: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
            implementation = self.implementation
            return experts_forward(
                rows, ids, gates, gate_up, down, num_groups=num_groups, implementation=implementation
            )

        dispatch = partial(static_dispatch, equal_tokens=self.equal_tokens) if self.static else counted_dispatch
        output = dispatch(
            tokens,
            expert_ids,
            weights,
            local_experts,
            num_local_experts=gate_up.shape[0],
            group=self.mesh.get_group(SHARDS),
        )
        return output.to(hidden_states.dtype)

    def _local(self, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor)
        local: Tensor = parameter.to_local()
        if local.requires_grad:
            local.register_hook(self._average)
        return local

    def _average(self, grad: Tensor) -> Tensor:
        """Return the mean over all processes of a gradient that is the sum over this group's."""
        grad = grad / self.mesh.size()
        if self.mesh[REPLICAS].size() > 1:
            dist.all_reduce(grad, group=self.mesh.get_group(REPLICAS))
        return grad

    def extra_repr(self) -> str:
        """Name the sizes in `repr`."""
        return f"experts={self.num_experts}, ep_size={self.mesh[SHARDS].size()}, static={self.static}"


def parallelize(model: nn.Module, mesh: DeviceMesh, *, equal_tokens: bool = False) -> None:
    """Spread a model over the mesh's processes, in place: its values become those of the first process.

    The layers of each module list that has mixtures, and what is left of the model, are units of FSDP2. Call it when
    the model is on its device and has its final type and shape, and before the optimizer is built. A model that is
    spread already stays as it is.

    Args:
        model: whose `forward` every process calls at the same time.
        mesh: from `expert_mesh`.
        equal_tokens: promises that all processes have equally many tokens in every forward pass, so that they need not
            tell each other (MoGE only).

    Raises:
        ValueError: the model has no mixture, or its experts cannot be spread like this.
    """
    if isinstance(model, FSDPModule):
        return
    blocks = [block for _, block in moge_blocks(model)]
    if not blocks:
        raise ValueError("expert parallelism: the model has no mixture of experts, there is no MoGEBlock in it")
    for block in blocks:
        check_ep_size(block.config, mesh[SHARDS].size())
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    for block in blocks:
        experts, static = block.experts, block.config.router == "moge"
        assert isinstance(experts, GroupedExperts)
        block.experts = ParallelExperts(experts, mesh, static=static, equal_tokens=equal_tokens)
    spread = {parameter for block in blocks for parameter in block.experts.parameters()}
    for layer in layers_with_mixtures(model):
        fully_shard(layer, mesh=mesh, ignored_params=spread)
    fully_shard(model, mesh=mesh, ignored_params=spread)


def expert_mesh(ep_size: int | None, device_type: str) -> DeviceMesh:
    """Return the mesh of all processes, (world / ep_size, ep_size); neighbours share the experts.

    Args:
        ep_size: processes that share the experts; None for all.
        device_type: ``"cpu"``, ``"cuda"``, ``"npu"``.

    Raises:
        ValueError: `ep_size` does not divide the number of processes.
    """
    world = dist.get_world_size()
    size = world if ep_size is None else ep_size
    if world % size:
        raise ValueError(f"ep_size={size} must divide the number of processes, {world}; allowed: {divisors(world)}")
    return init_device_mesh(device_type, (world // size, size), mesh_dim_names=MESH_NAMES)


def check_ep_size(config: Router.Config, ep_size: int) -> None:
    """Refuse a number of processes that cannot share the experts equally.

    Raises:
        ValueError: names the sizes that are allowed.
    """
    groups, experts = config.num_groups, config.num_experts
    if config.router == "moge" and groups % ep_size:
        raise ValueError(
            f"ep_size={ep_size} must divide num_groups (M) = {groups}, so that every process holds whole groups of "
            f"experts; allowed: {divisors(groups)}"
        )
    if experts % ep_size:
        raise ValueError(f"ep_size={ep_size} must divide num_experts (N) = {experts}; allowed: {divisors(experts)}")


def layers_with_mixtures(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of each module list in which there is a mixture of experts."""
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and any(isinstance(part, MoGEBlock) for part in modules.modules()):
            yield from modules


def divisors(number: int) -> str:
    """Return the divisors of a number as text, ``"1, 2, 4, 8"``."""
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)


def _shard(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """Return this process's part as a DTensor parameter, in memory of its own."""
    shards = mesh[SHARDS]
    local = parameter.detach().chunk(shards.size())[shards.get_local_rank()].clone()
    whole = DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
    return nn.Parameter(whole, requires_grad=parameter.requires_grad)
