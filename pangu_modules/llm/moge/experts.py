"""Routed SwiGLU experts: a reference loop, and a fast path that sorts token-rows by expert.

The fast path: sort the (token, expert) pairs by expert, gather the tokens' rows, two grouped matrix products with
SwiGLU and the gate between them, add the rows up again. All paths agree in value and gradient.

Legend: T tokens, K experts per token, S = T K rows, E experts, M groups, h hidden size, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ExpertsImplementation = Literal["auto", "grouped_mm", "loop", "reference"]

ALIGNMENT_BYTES = 16  # grouped_mm wants rows of a multiple of this
FEW_ROWS = 4  # on a CPU, below one row for this many experts, it pays to visit only the experts that have one

GROUPED_MATMUL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
"""Fused operators by device type (``"npu"``); each follows the contract of `grouped_matmul` and is used for both of
its forms."""


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


class RowOrder(NamedTuple):
    """How S = T K rows are sorted by expert.

    Args:
        pairs: (S,) int64, place of each sorted row in the k-major list of pairs (k T + t).
        tokens: (S,) int64, token of each sorted row.
        ends: (E,) int32, one past the last row of each expert: cumulative counts.
        num_tokens: T.
    """

    pairs: Tensor
    tokens: Tensor
    ends: Tensor
    num_tokens: int


def sort_rows(expert_ids: Tensor, num_experts: int, num_groups: int = 1) -> RowOrder:
    """Sort the (token, expert) pairs by expert, and by token for each expert.

    Args:
        expert_ids: (T, K).
        num_experts: E.
        num_groups: M: pairs are only sorted inside groups, because the list starts group after group.
    """
    num_tokens = expert_ids.shape[0]
    flat = expert_ids.t().reshape(-1)
    keys = flat.view(num_groups, -1)
    local = keys.argsort(dim=-1, stable=True)
    first = torch.arange(0, flat.numel() or 1, keys.shape[1] or 1, device=flat.device)[:num_groups]
    pairs = (local + first[:, None]).reshape(-1) if num_tokens else flat
    counts = count_rows(flat, num_experts)
    return RowOrder(pairs, pairs % max(num_tokens, 1), counts.cumsum(0, dtype=torch.int32), num_tokens)


def count_rows(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Return the rows of each expert, (E,) int64, without waiting for the device."""
    ids = expert_ids.reshape(-1)
    if ids.device.type == "cpu":
        return torch.bincount(ids, minlength=num_experts)
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))


def grouped_matmul(
    rows: Tensor, other: Tensor, ends: Tensor, *, implementation: ExpertsImplementation = "auto"
) -> Tensor:
    """Multiply each expert's rows by its own matrix: the seam for a fused operator (`GROUPED_MATMUL`).

    Two forms, by the dimensions of `other`; expert e has rows ``ends[e-1]:ends[e]``, maybe none:

    - other (E, a, b): (S, a) x (E, a, b) -> (S, b), row by row ``rows[s] @ other[e]``.
    - other (S, b): (S, a) x (S, b) -> (E, a, b), ``rows_e^T @ other_e``, 0 for an expert without rows.

    Both results are new and contiguous. It is not differentiated: the backward pass calls it itself.

    Args:
        rows: (S, a), sorted by expert.
        other: see above; (E, a, b) may be a transposed view.
        ends: (E,) int32 cumulative counts; the last is S.
        implementation: ``grouped_mm``, ``loop`` (expert by expert), or ``auto``: a fused operator of the device,
            otherwise grouped_mm, otherwise the loop: where grouped_mm does not take the sizes or the type, and for the
            few rows of one decoded token on a CPU.
    """
    fused = GROUPED_MATMUL.get(rows.device.type) if implementation == "auto" else None
    if rows.is_meta:
        return _on_meta(rows, other, ends)
    if fused is not None:
        return fused(rows, other, ends)
    few = implementation == "auto" and rows.is_cpu and other.ndim == 3 and FEW_ROWS * len(rows) < len(ends)
    if implementation == "loop" or not aligned(rows, other) or (few and not torch.compiler.is_compiling()):
        return _grouped_loop(rows, other, ends)
    return F.grouped_mm(rows if other.ndim == 3 else rows.t(), other, offs=ends)


def aligned(rows: Tensor, other: Tensor) -> bool:
    """Return whether grouped_mm takes these sizes and this type."""
    widths = (rows.shape[1], other.shape[-1])
    return rows.dtype != torch.float64 and all(width * rows.element_size() % ALIGNMENT_BYTES == 0 for width in widths)


def check_alignment(down_proj: Tensor) -> None:
    """Refuse sizes and types that grouped_mm does not take."""
    hidden, inner = down_proj.shape[1:]
    if down_proj.dtype == torch.float64 or hidden % 8 or inner % 8:
        raise ValueError(
            "experts_implementation='grouped_mm' needs hidden_size and expert_intermediate_size divisible by 8 and no "
            f"float64, got {hidden}, {inner} and {down_proj.dtype}: take 'auto', which falls back to a loop"
        )


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


def combine_rows(rows: Tensor, order: RowOrder) -> Tensor:
    """Add up the rows of each token, (S, h) to (T, h)."""
    if rows.is_cpu and rows.dtype in (torch.float32, torch.float64):
        return rows.new_zeros(order.num_tokens, rows.shape[1]).index_add_(0, order.tokens, rows)
    # On an accelerator index_add has no fixed order of additions; in low precision it rounds at each of them.
    inverse = torch.empty_like(order.pairs)
    inverse[order.pairs] = torch.arange(order.pairs.numel(), device=rows.device)
    num_choices = order.pairs.numel() // max(order.num_tokens, 1)
    return rows.index_select(0, inverse).view(num_choices, order.num_tokens, rows.shape[1]).sum(0)


def _grouped_loop(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    bounds = [0, *ends.tolist()]
    parts = [slice(first, last) for first, last in pairwise(bounds)]
    if other.ndim == 2:
        output = rows.new_empty(len(parts), rows.shape[1], other.shape[1])
        for expert, part in enumerate(parts):
            torch.mm(rows[part].t(), other[part], out=output[expert])  # of no rows: zeros
        return output
    output = rows.new_empty(rows.shape[0], other.shape[2])
    for expert, part in enumerate(parts):
        if part.stop > part.start:
            torch.mm(rows[part], other[expert], out=output[part])
    return output


def _on_meta(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """Return the shape, by a product of as many operations: FLOPs are counted on the meta device."""
    if other.ndim == 3:
        return rows @ other[0]
    return (rows.t() @ other).expand(ends.shape[0], -1, -1)
