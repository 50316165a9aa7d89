"""ProgressiveBinaryLinear: a linear layer whose effective weight is a function of latent weights, and its backward."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.weight_functions import Hard, WeightFunction

SMALLEST_SCALE = 1e-8
FLOAT16_MAX = 65504.0

ScaleDtype = Literal["float32", "float16"]


class ProgressiveBinaryLinear(nn.Module):
    """``y = (x * in_scale) W_t^T + bias`` with ``W_t = S_l S_a F(W / S_a)`` (arXiv:2508.06974, eq. 9), in float32.

    The parameters are ``weight`` (out, in), the latent W; ``scale`` (out,), S_l; ``bias``; and for method "onebit"
    ``in_scale`` (in,), otherwise a frozen buffer where the configuration wants an input scale. The buffer ``t`` (0-dim)
    is what the schedule moves, ``hard`` (0-dim bool) marks the tail in which weights are binary.

    Args:
        linear: the dense layer; its parameters are taken over, the very objects and not copies.
        config: method and scales.
    """

    base: Tensor | None
    in_scale: Tensor | None
    t: Tensor
    hard: Tensor

    def __init__(self, linear: nn.Linear, config: OneBitConfig) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.config = config
        self.weight, self.bias = linear.weight, linear.bias
        factory: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        by_rows = config.function.scaled_by_row_mean
        learned = config.method == "onebit" or (by_rows and config.scales != "analytic")
        self.scale = nn.Parameter(torch.ones(self.out_features, **factory), requires_grad=learned)
        frozen = by_rows and config.scales == "learned"
        self.register_buffer("base", torch.ones(self.out_features, **factory) if frozen else None)
        if config.method == "onebit":
            self.in_scale = nn.Parameter(torch.ones(self.in_features, **factory))
        else:
            own = config.keeps_input_scale
            self.register_buffer("in_scale", torch.ones(self.in_features, **factory) if own else None)
        self.register_buffer("t", torch.zeros((), device=linear.weight.device))
        self.register_buffer("hard", torch.zeros((), dtype=torch.bool, device=linear.weight.device))
        self.start()
        self.set_phase(0.0)
        self.register_load_state_dict_post_hook(lambda module, _: module._take_phase())
        self.train(linear.training)

    @torch.no_grad()
    def start(self) -> None:
        """Set the scales that depend on the latent weights at the start: `base`, and for "onebit" a and b."""
        if self.base is not None:
            self.base.copy_(self.config.function.scale(self.weight).squeeze(1))
        if self.config.method == "onebit":
            rows, columns = rank_one_magnitudes(self.weight)
            self.scale.copy_(rows)
            assert self.in_scale is not None
            self.in_scale.copy_(columns)

    def set_phase(self, t: float, hard: bool = False) -> None:
        """Set the function's knob (t, or lambda), and whether the weights are binary."""
        self.t.fill_(t)
        self.hard.fill_(hard)
        # Remembered in Python, so that a forward on an accelerator does not wait for the buffers.
        starts = self.config.function.starts_at(t)
        self._phase: Literal["identity", "soft", "hard"] = "hard" if hard else ("identity" if starts else "soft")

    def _take_phase(self) -> None:
        """Read the phase from buffers that were loaded."""
        if not self.t.is_meta:
            self.set_phase(float(self.t), bool(self.hard))

    @property
    def weights_rest(self) -> bool:
        """Whether the latent weights must not change now: the tail that trains scales alone, or method "sign"."""
        return self.config.method == "sign" or (self._phase == "hard" and self.config.hard_tail != "ste")

    def row_scale(self) -> Tensor:
        """Return S_l (out, 1); its learning rate is `scale_lr_mult` times that of the parameter."""
        factor = self.config.scale_lr_mult
        scale = self.scale if factor == 1 else 1 + factor * (self.scale - 1)
        return scale[:, None]

    def effective_weight(self) -> Tensor:
        """Return W_t (out, in), of the precision of the latent weights."""
        if self._phase == "identity":
            return self.row_scale() * self.weight
        function = self.config.function
        differentiate = self.config.differentiates_scale
        if self._phase == "hard":
            function, differentiate = Hard(function, 0.0 if self.config.hard_tail != "ste" else 1.0), False
        result: Tensor = EffectiveWeight.apply(
            self.weight, self.row_scale(), self.base, self.t, function, differentiate
        )
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) from (..., in)."""
        scaled = x if self.in_scale is None else x * self.in_scale.to(x.dtype)
        return functional.linear(scaled, self.effective_weight(), self.bias)

    @torch.no_grad()
    def normalized_weight(self) -> Tensor:
        """Return z = W / S_a (out, in)."""
        return self.weight / self.analytic_scale().clamp(min=SMALLEST_SCALE)

    @torch.no_grad()
    def analytic_scale(self) -> Tensor:
        """Return S_a (out, 1) or, of methods with one scale per tensor, (1, 1)."""
        return self.config.function.scale(self.weight) if self.base is None else self.base[:, None]

    @torch.no_grad()
    def finalize(self, scale_dtype: ScaleDtype = "float32") -> nn.Linear:
        """Return the plain layer of inference, whose weight is ``S_l S_a sign(W)``: two values in each row.

        It takes over the objects of weight and bias; with an input scale it is an `InputScaledLinear`.

        Args:
            scale_dtype: precision that the merged row scales are rounded to; the weight keeps its own.

        Raises:
            ValueError: a scale is too large or too small for float16.
        """
        merged = (self.row_scale() * self.analytic_scale()).expand(-1, 1)
        binary = self.config.function.final(self.normalized_weight())
        self.weight.copy_(rounded(merged, scale_dtype) * binary)
        if self.in_scale is None:
            linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        else:
            linear = InputScaledLinear(self.in_features, self.out_features, self.bias is not None, device="meta")
            linear.in_scale = self.in_scale.detach().clone()
        linear.weight, linear.bias = self.weight.requires_grad_(True), self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and method."""
        return f"in_features={self.in_features}, out_features={self.out_features}, method={self.config.method}"


class InputScaledLinear(nn.Linear):
    """``y = (x * in_scale) W^T + b``: a linear layer with a fixed scale per input channel, the buffer ``in_scale``."""

    in_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.register_buffer("in_scale", torch.ones(in_features, **factory))

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out) from (..., in)."""
        return super().forward(input * self.in_scale.to(input.dtype))


class EffectiveWeight(Function):
    """``S_l S_a F(W / S_a)`` with the function's own slope; beside the weight only what the function keeps is saved."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        row_scale: Tensor,
        base: Tensor | None,
        knob: Tensor,
        function: WeightFunction,
        differentiate_scale: bool,
    ) -> Tensor:
        """Return W_t (out, in) from W (out, in), S_l (out, 1), and S_a of the start (out,) or None."""
        analytic = function.scale(weight) if base is None else base[:, None]
        knob = knob.to(weight.dtype)
        values, kept = function.values(weight / analytic.clamp(min=SMALLEST_SCALE), knob)
        ctx.function, ctx.differentiate_scale = function, differentiate_scale
        ctx.save_for_backward(weight, row_scale, analytic, knob, kept)
        return values * (row_scale * analytic * function.value_factor(knob))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of W and S_l, with G = gradient (for progressive the true derivative, eq. 5-6).

        ``dL/dS_l = sum_j G S_a F``; ``dL/dW = S_l (G F' + sign(W) mean_j[G (F - z F')])``, whose last term is only
        there where S_a is differentiated.
        """
        weight, row_scale, analytic, knob, kept = ctx.saved_tensors
        function: WeightFunction = ctx.function
        safe = analytic.clamp(min=SMALLEST_SCALE)
        values = function.values(weight / safe, knob)[0] if kept is None else kept
        factor = function.value_factor(knob)
        summed = (gradient * values).sum(1, keepdim=True) * factor  # sum_j G F
        grad_scale = summed * analytic
        slope = function.slope(kept, knob)
        if isinstance(slope, float) and slope == 0:
            # A zero and not None: DDP would take the parameter for an unused one.
            return torch.zeros_like(weight), grad_scale, None, None, None, None
        through = gradient * slope
        if ctx.differentiate_scale:
            rest = summed - (through * weight).sum(1, keepdim=True) / safe
            through = through + torch.sign(weight) * (rest / weight.shape[1])
        return through * row_scale, grad_scale, None, None, None, None


def rank_one_magnitudes(weight: Tensor, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Return a (out,) and b (in,) with |W| ~ a b^T in least squares, by power iteration; the mean of b is 1.

    All entries are non-negative, as the leading singular vectors of a non-negative matrix are. A column of zeros gets
    the smallest scale that divides safely.
    """
    magnitudes = weight.detach().abs()
    columns = torch.ones(magnitudes.shape[1], dtype=magnitudes.dtype, device=magnitudes.device)
    for _ in range(iterations):
        columns = magnitudes.T @ (magnitudes @ columns)
        columns = columns / columns.mean().clamp(min=torch.finfo(columns.dtype).tiny)
    columns = columns.clamp(min=SMALLEST_SCALE)
    return magnitudes @ columns / columns.square().sum(), columns


def rounded(scales: Tensor, scale_dtype: ScaleDtype) -> Tensor:
    """Return scales rounded to a precision, in their own dtype.

    Raises:
        ValueError: one leaves the range of float16.
    """
    if scale_dtype == "float32":
        return scales
    result = scales.half().to(scales.dtype)
    lost = (result == 0) & (scales != 0) | ~result.isfinite()
    if bool(lost.any()):
        worst = scales[lost].abs().max().item()
        raise ValueError(
            f"scale_dtype='float16': {int(lost.sum())} row scales (e.g. {worst:.3g}) are outside of float16's range "
            f"(6e-8 to {FLOAT16_MAX:g}); keep scale_dtype='float32'"
        )
    return result
