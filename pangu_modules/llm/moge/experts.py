"""Routed SwiGLU experts: a reference loop, and a fast path that sorts token-rows by expert.

The fast path: sort the (token, expert) pairs by expert, gather the tokens' rows, two grouped matrix products with
SwiGLU and the gate between them, add the rows up again. All paths agree in value and gradient.

Legend: T tokens, K experts per token, S = T K rows, E experts, M groups, h hidden size, I inner width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pangu_modules.llm.moge.grouped_matmul import ExpertsImplementation, check_alignment, grouped_matmul
from pangu_modules.llm.moge.rows import RowOrder, combine_rows, sort_rows


class GroupedExperts(nn.Module):
    """E experts ``down(silu(gate(x)) * up(x))`` with stacked weights.

    ``gate_up_proj`` (E, 2 I, h) holds the rows of gate first, then those of up; ``down_proj`` is (E, h, I).

    Args:
        hidden_size: h.
        intermediate_size: I.
        num_experts: E.
        num_groups: M, if column block g of the ids always belongs to expert group g (a MoGE router); otherwise 1. It
            makes sorting cheaper.
        implementation: see `experts_forward`.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        num_groups: int = 1,
        implementation: ExpertsImplementation = "auto",
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.num_groups = num_groups
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.implementation: ExpertsImplementation = implementation
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.act_fn = nn.SiLU()
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the weights from N(0, std^2)."""
        nn.init.normal_(self.gate_up_proj, std=std)
        nn.init.normal_(self.down_proj, std=std)

    def forward(self, hidden_states: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the gated sum of the selected experts, (T, h); arguments as in `experts_forward`."""
        return experts_forward(
            hidden_states,
            expert_ids,
            weights,
            self.gate_up_proj,
            self.down_proj,
            num_groups=self.num_groups,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        """Name the sizes in `repr`."""
        return f"experts={self.num_experts}, hidden={self.hidden_size}, intermediate={self.intermediate_size}"


def experts_forward(
    hidden_states: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    num_groups: int = 1,
    implementation: ExpertsImplementation = "auto",
) -> Tensor:
    """Return ``sum over k of weights[t, k] * E_{ids[t, k]}(x_t)``, (T, h), in the type of `hidden_states`.

    Args:
        hidden_states: (T, h); T may be 0.
        expert_ids: (T, K) int64.
        weights: (T, K), the gates.
        gate_up_proj: (E, 2 I, h).
        down_proj: (E, h, I).
        num_groups: see `GroupedExperts`.
        implementation: ``reference`` loops over experts; ``loop`` sorts rows and multiplies expert by expert;
            ``grouped_mm`` sorts rows and multiplies with `torch.nn.functional.grouped_mm`; ``auto`` takes the fastest
            that works here. Only ``reference`` can be differentiated twice.

    Raises:
        ValueError: ``grouped_mm`` is asked for and h or I is no multiple of 8, or the type is float64.
    """
    if implementation == "reference":
        return reference_experts(hidden_states, expert_ids, weights, gate_up_proj, down_proj)
    rows_type = compute_dtype(hidden_states, gate_up_proj)
    tokens, gate_up, down = (tensor.to(rows_type) for tensor in (hidden_states, gate_up_proj, down_proj))
    if implementation == "grouped_mm":
        check_alignment(down)
    order = sort_rows(expert_ids, gate_up.shape[0], num_groups)
    arguments = (tokens, weights, gate_up, down, order, implementation)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments[:4]):
        output = _SortedExperts.apply(*arguments)
    else:
        output, _ = _sorted_forward(*arguments)
    return output.to(hidden_states.dtype)


def reference_experts(
    hidden_states: Tensor, expert_ids: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Return what `experts_forward` returns by a loop over experts: the meaning of every faster path."""
    output = torch.zeros_like(hidden_states)
    for expert in range(gate_up_proj.shape[0]):
        tokens, columns = torch.where(expert_ids == expert)
        gate, up = F.linear(hidden_states[tokens], gate_up_proj[expert]).chunk(2, dim=-1)
        value = F.linear(F.silu(gate) * up, down_proj[expert])
        output = output.index_add(0, tokens, (value * weights[tokens, columns, None]).to(output.dtype))
    return output


def compute_dtype(hidden_states: Tensor, weight: Tensor) -> torch.dtype:
    """Return autocast's type where it is on (grouped products are not part of it), otherwise the weights' type."""
    device = hidden_states.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


class _SortedExperts(torch.autograd.Function):
    """The sorted path. Keeps the tokens and their products with `gate_up`, and recomputes what lies between."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        order: RowOrder,
        implementation: ExpertsImplementation,
    ) -> Tensor:
        output, projected = _sorted_forward(tokens, weights, gate_up, down, order, implementation)
        ctx.save_for_backward(tokens, weights, gate_up, down, projected)
        ctx.order, ctx.implementation = order, implementation
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weights, gate_up, down, projected = ctx.saved_tensors
        need_tokens, need_weights, need_gate_up, need_down, _, _ = ctx.needs_input_grad
        order, matmul = ctx.order, partial(grouped_matmul, ends=ctx.order.ends, implementation=ctx.implementation)
        scale = _to_rows(weights, order)[:, None]
        gate, up = projected.chunk(2, dim=-1)
        grad = grad_output.index_select(0, order.tokens)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        inner = silu * up
        grad_inner = matmul(grad, down)
        # <grad, down(inner)> = <down^T(grad), inner>: the experts' outputs need not be kept.
        grad_scale = (grad_inner * inner).sum(-1, dtype=weights.dtype) if need_weights else None
        grad_down = matmul(grad, inner.mul_(scale)) if need_down else None
        grad_inner.mul_(scale)
        grad_projected = torch.empty_like(projected)
        grad_gate, grad_up = grad_projected.chunk(2, dim=-1)
        torch.mul(grad_inner, silu, out=grad_up)
        slope = torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1)  # of silu: s + z s - z s^2, s = sigmoid(z)
        torch.mul(grad_inner.mul_(up), slope, out=grad_gate)
        grad_gate_up = matmul(grad_projected, tokens.index_select(0, order.tokens)) if need_gate_up else None
        grad_tokens = combine_rows(matmul(grad_projected, gate_up), order) if need_tokens else None
        grad_weights = None if grad_scale is None else _from_rows(grad_scale, order, weights.shape[1])
        return grad_tokens, grad_weights, grad_gate_up, grad_down, None, None


def _sorted_forward(
    tokens: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    order: RowOrder,
    implementation: ExpertsImplementation,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, h) and the rows' products with `gate_up` (S, 2 I)."""
    matmul = partial(grouped_matmul, ends=order.ends, implementation=implementation)
    projected = matmul(tokens.index_select(0, order.tokens), gate_up.transpose(1, 2))
    gate, up = projected.chunk(2, dim=-1)
    # The gate multiplies before `down`, where rows are narrower than behind it.
    inner = F.silu(gate).mul_(up).mul_(_to_rows(weights, order)[:, None])
    return combine_rows(matmul(inner, down.transpose(1, 2)), order), projected


def _to_rows(weights: Tensor, order: RowOrder) -> Tensor:
    """Return the gates (T, K) in sorted order, (S,)."""
    return weights.t().reshape(-1).index_select(0, order.pairs)


def _from_rows(row_weights: Tensor, order: RowOrder, num_choices: int) -> Tensor:
    """Return sorted gates (S,) as (T, K)."""
    flat = torch.empty_like(row_weights).index_copy_(0, order.pairs, row_weights)
    return flat.view(num_choices, order.num_tokens).t()
