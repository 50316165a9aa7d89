"""SLNP: stabilised LayerNorm pruning, one scalar per RMSNorm after hidden channels are cut (arXiv:2505.20155).

Cutting channels changes the L2 norm of every gain vector gamma. Each remaining gain is multiplied by

    c = || gamma ||_2 / || gamma[kept] ||_2  >= 1

computed from the weights alone, once, before recovery training. Controls: ``none`` (c = 1), ``inverse`` (1 / c) and
``calibrated`` (c = mean over tokens of rms(x[kept]) / rms(x), which restores what the norm divides by).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pangu_modules.llm.calibration.probe import Probe, hidden_norms, run, sum_over_tokens
from pangu_modules.llm.calibration.statistics import wide
from pangu_modules.training.objectives import Batch

SlnpMode = Literal["slnp", "none", "calibrated", "inverse"]
SlnpNorms = Literal["all", "pre_and_final"]
POST_NORMS = ("post_self_attn_layernorm", "post_mlp_layernorm")
"""Names of the norms behind the attention and the FFN in a sandwich-norm layer; a pre-norm layer has none."""


def slnp_factors(
    model: nn.Module,
    kept: Sequence[int],
    *,
    mode: SlnpMode = "slnp",
    norms: SlnpNorms = "all",
    batches: Sequence[Batch] | None = None,
) -> dict[str, float]:
    """Return the factor c of every RMSNorm over the hidden channels, by its name (``layers.0.input_layernorm``).

    Must run before the channels are cut. Keeping all channels gives exactly 1.0.

    Args:
        model: the unpruned model.
        kept: hidden channels that will stay.
        mode: which factor.
        norms: ``all``, or ``pre_and_final``, which leaves a sandwich model's post-norms at 1.
        batches: calibration batches; only ``calibrated`` reads them.

    Raises:
        ValueError: a norm keeps only zero gains, or ``calibrated`` has no batches.
    """
    found = hidden_norms(model)
    chosen = {name: norm for name, norm in found.items() if norms == "all" or not name.endswith(POST_NORMS)}
    if mode == "none":
        factors = dict.fromkeys(chosen, 1.0)
    elif mode == "calibrated":
        if batches is None:
            raise ValueError("slnp='calibrated' needs calibration batches; slnp='slnp' needs none")
        factors = _calibrated(model, chosen, kept, batches)
    else:
        ratios = {name: _gain_ratio(norm, kept, name) for name, norm in chosen.items()}
        factors = ratios if mode == "slnp" else {name: 1 / ratio for name, ratio in ratios.items()}
    return {name: factors.get(name, 1.0) for name in found}


@torch.no_grad()
def slnp_rescale(norms: Mapping[str, nn.Module], factors: Mapping[str, float]) -> None:
    """Multiply each norm's gain in place by its factor; a factor of 1 leaves the gain bit-identical.

    Raises:
        KeyError: a factor names no norm of `norms`.
    """
    for name, factor in factors.items():
        norm: Any = norms[name]
        if factor != 1.0:
            norm.weight *= factor


def _gain_ratio(norm: Any, kept: Sequence[int], name: str) -> float:
    gain = norm.weight.detach().double()
    whole = float(gain.norm())
    part = float(gain[torch.tensor(sorted(kept), device=gain.device)].norm())
    if part == 0:
        raise ValueError(f"{name} keeps only gains of zero: keep other channels, or prune with slnp='none'")
    return whole / part


def _calibrated(
    model: nn.Module, norms: Mapping[str, nn.Module], kept: Sequence[int], batches: Sequence[Batch]
) -> dict[str, float]:
    with _RmsRatio(model, norms, kept) as probe:
        run(model, batches)
    return {name: float(total / count) for name, (total, count) in probe.sums.items()}


class _RmsRatio(Probe):
    """Sums rms(x[kept]) / rms(x) over the tokens at every norm's input x."""

    def __init__(self, model: nn.Module, norms: Mapping[str, nn.Module], kept: Sequence[int]) -> None:
        super().__init__(model)
        self.norms = norms
        self.kept = torch.tensor(sorted(kept), device=next(model.parameters()).device)
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Hook the input of every norm."""
        return [norm.register_forward_pre_hook(partial(self._on_norm, name=name)) for name, norm in self.norms.items()]

    def _on_norm(self, module: Any, args: Any, *, name: str) -> None:
        squares, eps = wide(args[0]).square(), module.variance_epsilon
        ratio = ((squares[..., self.kept].mean(-1) + eps) / (squares.mean(-1) + eps)).sqrt()
        sums, tokens = sum_over_tokens(ratio[..., None], self.mask)
        total, count = self.sums.get(name, (0, 0))
        self.sums[name] = (total + sums.sum(), count + tokens.sum())
