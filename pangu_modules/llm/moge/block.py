"""The MoGE block: router, routed experts and one shared expert, in place of a transformer's FFN.

    y = sum over selected experts e of gate_e E_e(x)  +  S(x)

with gates from `Router`, SwiGLU experts E_e and a dense SwiGLU S of weight 1 (arXiv:2505.21411, section 2). Parameters
have the names of the released checkpoint, with the experts stacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from pangu_modules.common.config import Configurable
from pangu_modules.llm.moge.experts import GroupedExperts
from pangu_modules.llm.moge.grouped_matmul import ExpertsImplementation
from pangu_modules.llm.moge.router import Router
from pangu_modules.llm.moge.routing import Routing


class RoutingRecord:
    """Holds the `Routing` of a block's last forward pass, with its graph; copies of the block start without one.

    Read it after the forward pass, before the backward pass for a loss or after it for statistics.
    """

    def __init__(self) -> None:
        self.routing: Routing | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutingRecord:
        return RoutingRecord()

    def __reduce__(self) -> tuple[Any, ...]:
        return RoutingRecord, ()


class MoGEBlock(Configurable, nn.Module):
    """Mixture of grouped experts with a shared expert, (..., h) to (..., h).

    Args:
        config: the block's fields.
        layer_idx: named in messages.
        experts: what computes the routed part, `(tokens (T, h), ids (T, K), gates (T, K)) -> (T, h)`; None builds
            `GroupedExperts`.
    """

    class Config(Router.Config):
        """The router's fields, the experts' widths, and how the experts are computed."""

        renamed = {
            **Router.Config.renamed,
            "expert_intermediate_size": "moe_intermediate_size",
            "shared_intermediate_size": "shared_expert_intermediate_size",
        }

        moe_intermediate_size: int = Field(1344, gt=0, description="Inner width of a routed expert (I).")
        shared_expert_intermediate_size: NonNegativeInt = Field(
            5376, description="Inner width of the shared expert; 0: none."
        )
        router_scale: bool = Field(
            True, description="Learn a factor of each expert's gate, as the released checkpoint has it."
        )
        experts_implementation: ExpertsImplementation = Field(
            "auto", description="auto, grouped_mm, loop (both on sorted tokens), or reference (a loop over experts)."
        )

    config: Config

    def __init__(self, config: Config, *, layer_idx: int | None = None, experts: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.gate = Router(config, layer_idx=layer_idx)
        scale = nn.Parameter(torch.ones(1, config.num_experts)) if config.router_scale else None
        self.register_parameter("router_scale", scale)
        self.experts = experts or GroupedExperts(
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            num_experts=config.num_experts,
            num_groups=config.num_groups if config.router == "moge" else 1,
            implementation=config.experts_implementation,
        )
        shared = config.shared_expert_intermediate_size
        self.shared_expert = SwiGLU(config.hidden_size, shared) if shared else None
        self.record = RoutingRecord()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output; hidden_states (..., h), of no token too.

        Raises:
            ValueError: see `Router.forward`.
        """
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.gate(tokens, self.router_scale)
        self.record.routing = routing
        output = self.experts(tokens, routing.expert_ids, routing.weights)
        if self.shared_expert is not None:
            output = output + self.shared_expert(tokens)
        return output.view(hidden_states.shape)


class SwiGLU(nn.Module):
    """Dense ``down(silu(gate(x)) * up(x))`` without biases; (..., h) to (..., h)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the MLP's output."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def moge_blocks(model: nn.Module) -> Iterator[tuple[str, MoGEBlock]]:
    """Yield name and block of each mixture of a model, in order of layers."""
    for name, module in model.named_modules():
        if isinstance(module, MoGEBlock):
            yield name, module


def recorded_routings(model: nn.Module) -> list[Routing]:
    """Return what each mixture of the model decided in the last forward pass.

    Raises:
        ValueError: the model has no mixture, or one has not run yet.
    """
    routings = [block.record.routing for _, block in moge_blocks(model)]
    if not routings:
        raise ValueError("the model has no mixture of experts: there is no MoGEBlock in it")
    if any(routing is None for routing in routings):
        raise ValueError("no forward pass yet: a mixture of experts has no routing to look at")
    return [routing for routing in routings if routing is not None]
