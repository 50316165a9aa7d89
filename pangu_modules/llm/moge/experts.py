"""Routed SwiGLU experts: a reference loop, and a fast path that sorts token-rows by expert.

The fast path: sort the (token, expert) pairs by expert, gather the tokens' rows, two grouped matrix products with
SwiGLU and the gate between them, add the rows up again. All paths agree in value and gradient.

Legend: T tokens, K experts per token, S = T K rows, E experts, M groups, h hidden size, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ExpertsImplementation = Literal["auto", "grouped_mm", "loop", "reference"]

ALIGNMENT_BYTES = 16  # grouped_mm wants rows of a multiple of this
FEW_ROWS = 128  # up to here, without gradients, only the selected experts are touched, one after another

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
        check_alignment(tokens, down)
    if implementation == "auto" and few_rows(expert_ids) and not needs_grad(tokens, weights, gate_up, down):
        return few_tokens(tokens, expert_ids, weights, gate_up, down).to(hidden_states.dtype)
    order = sort_rows(expert_ids, gate_up.shape[0], num_groups)
    rows = gather_rows(tokens, order)
    row_weights = weights.t().reshape(-1)[order.pairs]
    rows = grouped_swiglu(rows, row_weights, gate_up, down, order.ends, loop=implementation == "loop")
    return combine_rows(rows, order).to(hidden_states.dtype)


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


def grouped_matmul(rows: Tensor, other: Tensor, ends: Tensor, *, loop: bool = False) -> Tensor:
    """Multiply each expert's rows by its own matrix: the seam for a fused operator (`GROUPED_MATMUL`).

    Two forms, by the dimensions of `other`; expert e has rows ``ends[e-1]:ends[e]``, maybe none:

    - other (E, a, b): (S, a) x (E, a, b) -> (S, b), row by row ``rows[s] @ other[e]``.
    - other (S, b): (S, a) x (S, b) -> (E, a, b), ``rows_e^T @ other_e``, 0 for an expert without rows.

    Args:
        rows: (S, a), sorted by expert.
        other: see above; (E, a, b) may be a transposed view.
        ends: (E,) int32 cumulative counts; the last is S.
        loop: multiply expert by expert, for sizes and types that grouped_mm does not take.
    """
    fused = GROUPED_MATMUL.get(rows.device.type)
    if fused is not None and not loop:
        return fused(rows, other, ends)
    if rows.is_meta:
        return _on_meta(rows, other, ends)
    if loop or not aligned(rows, other):
        return _grouped_loop(rows, other, ends)
    return F.grouped_mm(rows if other.ndim == 3 else rows.t(), other, offs=ends)


def grouped_swiglu(
    rows: Tensor, row_weights: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor, *, loop: bool = False
) -> Tensor:
    """Return ``weight * down_e(silu(gate_e(x)) * up_e(x))`` for rows sorted by expert, (S, h).

    Saves the rows and the products with `gate_up` for the backward pass, and recomputes what lies between.

    Args:
        rows: (S, h), sorted by expert.
        row_weights: (S,), gate of each row.
        gate_up: (E, 2 I, h).
        down: (E, h, I).
        ends: (E,) int32 cumulative counts of rows.
        loop: see `grouped_matmul`.
    """
    return _GroupedSwiGLU.apply(rows, row_weights, gate_up, down, ends, loop)


def gather_rows(tokens: Tensor, order: RowOrder) -> Tensor:
    """Return each sorted row's token, (T, h) to (S, h)."""
    return _Gather.apply(tokens, order)


def combine_rows(rows: Tensor, order: RowOrder) -> Tensor:
    """Add up the rows of each token, (S, h) to (T, h)."""
    return _Combine.apply(rows, order)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: RowOrder) -> Tensor:
        ctx.order = order
        return tokens.index_select(0, order.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _add_up(grad, ctx.order), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: RowOrder) -> Tensor:
        ctx.order = order
        return _add_up(rows, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.order.tokens), None


def _add_up(rows: Tensor, order: RowOrder) -> Tensor:
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64):
        return rows.new_zeros(order.num_tokens, rows.shape[1]).index_add_(0, order.tokens, rows)
    # Elsewhere index_add is not deterministic, and in low precision it rounds at every addition.
    inverse = torch.empty_like(order.pairs)
    inverse[order.pairs] = torch.arange(order.pairs.numel(), device=rows.device)
    num_choices = order.pairs.numel() // max(order.num_tokens, 1)
    return rows.index_select(0, inverse).view(num_choices, order.num_tokens, -1).sum(0)


class _GroupedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, row_weights: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor, loop: bool
    ) -> Tensor:
        projected = grouped_matmul(rows, gate_up.transpose(1, 2), ends, loop=loop)
        gate, up = projected.chunk(2, dim=-1)
        scaled = (F.silu(gate).mul_(up) * row_weights[:, None]).to(rows.dtype)
        ctx.save_for_backward(rows, row_weights, gate_up, down, ends, projected)
        ctx.loop = loop
        return grouped_matmul(scaled, down.transpose(1, 2), ends, loop=loop)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, row_weights, gate_up, down, ends, projected = ctx.saved_tensors
        need_rows, need_weights, need_gate_up, need_down, _, _ = ctx.needs_input_grad
        loop, grad = ctx.loop, grad.contiguous()
        gate, up = projected.chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        inner = silu * up
        scale = row_weights[:, None].to(rows.dtype)
        grad_down = grouped_matmul(grad, inner * scale, ends, loop=loop) if need_down else None
        grad_inner = grouped_matmul(grad, down, ends, loop=loop)
        # <grad, down(inner)> = <down^T(grad), inner>, so that the output need not be kept.
        grad_weights = (grad_inner * inner).sum(-1, dtype=row_weights.dtype) if need_weights else None
        grad_inner = grad_inner * scale
        grad_projected = torch.empty_like(projected)
        grad_gate, grad_up = grad_projected.chunk(2, dim=-1)
        torch.mul(grad_inner, silu, out=grad_up)
        torch.mul(grad_inner * up, sigmoid + silu * (1 - sigmoid), out=grad_gate)
        grad_gate_up = grouped_matmul(grad_projected, rows, ends, loop=loop) if need_gate_up else None
        grad_rows = grouped_matmul(grad_projected, gate_up, ends, loop=loop) if need_rows else None
        return grad_rows, grad_weights, grad_gate_up, grad_down, None, None


def _grouped_loop(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    bounds = [0, *ends.tolist()]
    slices = [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]
    if other.ndim == 2:
        output = rows.new_zeros(len(slices), rows.shape[1], other.shape[1])
        for expert, part in enumerate(slices):
            if part.stop > part.start:
                torch.mm(rows[part].t(), other[part], out=output[expert])
        return output
    output = rows.new_empty(rows.shape[0], other.shape[2])
    for expert, part in enumerate(slices):
        if part.stop > part.start:
            torch.mm(rows[part], other[expert], out=output[part])
    return output


def _on_meta(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """Return the shape, by a product of as many operations: FLOPs are counted on the meta device."""
    if other.ndim == 3:
        return rows @ other[0]
    return (rows.t() @ other).expand(ends.shape[0], -1, -1)


def few_tokens(tokens: Tensor, expert_ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return what `experts_forward` returns, for few tokens and without gradients: reads selected experts only."""
    output = torch.zeros_like(tokens)
    flat = expert_ids.reshape(-1)
    for expert in flat.unique().tolist():
        rows, columns = torch.where(expert_ids == expert)
        gate, up = F.linear(tokens[rows], gate_up[expert]).chunk(2, dim=-1)
        inner = (F.silu(gate).mul_(up) * weights[rows, columns, None]).to(tokens.dtype)
        output.index_add_(0, rows, F.linear(inner, down[expert]))
    return output


def compute_dtype(hidden_states: Tensor, weight: Tensor) -> torch.dtype:
    """Return autocast's type where it is on (grouped_mm is not part of it), otherwise the weights' type."""
    device = hidden_states.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def aligned(rows: Tensor, other: Tensor) -> bool:
    """Return whether grouped_mm takes these sizes and types."""
    size = rows.element_size()
    widths = (rows.shape[1], other.shape[-1])
    return rows.dtype != torch.float64 and all(width * size % ALIGNMENT_BYTES == 0 for width in widths)


def check_alignment(tokens: Tensor, down: Tensor) -> None:
    """Refuse sizes and types that grouped_mm does not take."""
    hidden, inner = down.shape[1:]
    if tokens.dtype == torch.float64 or hidden % 8 or inner % 8:
        raise ValueError(
            f"experts_implementation='grouped_mm' needs hidden_size and expert_intermediate_size divisible by 8 and "
            f"a type below float64, got {hidden}, {inner} and {tokens.dtype}: take 'auto', which falls back to a loop"
        )


def few_rows(expert_ids: Tensor) -> bool:
    """Return whether there are so few rows that touching only selected experts pays off."""
    return expert_ids.numel() <= FEW_ROWS and expert_ids.device.type == "cpu"


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
