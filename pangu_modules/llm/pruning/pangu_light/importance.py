"""Importance of every axis of a decoder from one forward pass (Pangu Light, arXiv:2505.20155; Minitron's family).

For real tokens x of the calibration set, with each axis on the scale of its own activations:

    hidden channel k     sum over all RMSNorms n of  mean |RMSNorm_n(x)[k]|          (output, gain included)
    query head j         mean || head_j(x) ||_2        before the output projection, or after its columns of it
    FFN channel i        mean | act(gate_i(x)) up_i(x) |
    layer l              1 - mean cos(X_l, X_{l+1})                                  (ShortGPT's block influence)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pangu_modules.llm.calibration.probe import Probe, hidden_norms, run, sum_over_tokens
from pangu_modules.llm.calibration.statistics import wide
from pangu_modules.llm.models.decoder import decoder_layers, layer_shape
from pangu_modules.training.objectives import Batch

Aggregation = Literal["mean", "l2"]
HeadScore = Literal["norm", "contribution"]


@dataclass(frozen=True)
class Importance:
    """Scores of one model, float64 on the CPU, larger is more important.

    Shapes: ``hidden`` (hidden,), ``heads`` (layers, num_heads), ``channels`` (layers, intermediate), ``layers``
    (layers,).
    """

    hidden: Tensor
    heads: Tensor
    channels: Tensor
    layers: Tensor


def collect_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    agg_batch: Aggregation = "mean",
    agg_seq: Aggregation = "mean",
    head_score: HeadScore = "norm",
) -> Importance:
    """Score every axis in one forward pass over the batches; see `ImportanceCollector`."""
    collector = ImportanceCollector(model, agg_batch=agg_batch, agg_seq=agg_seq, head_score=head_score)
    with collector:
        run(model, batches)
    return collector.importance()


class ImportanceCollector(Probe):
    """Collects the scores of whatever passes through the model inside its ``with`` block.

    Values are taken in float32 (float64 for a float64 model) and summed in float64; padding is excluded. Sequences
    count by their real tokens, so ("mean", "mean") is the mean over tokens and ("l2", "l2") the root mean square.
    Minitron reports ``agg_batch="l2", agg_seq="mean"`` as best.

    Args:
        model: a decoder whose layers have equal sizes.
        agg_batch: how the sequences' values combine.
        agg_seq: how the tokens of a sequence combine.
        head_score: ``norm`` of a head's output, or of its ``contribution`` to the stream after its o_proj columns.

    Raises:
        ValueError: a norm is not an RMSNorm, or the layers differ in size.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        agg_batch: Aggregation = "mean",
        agg_seq: Aggregation = "mean",
        head_score: HeadScore = "norm",
    ) -> None:
        super().__init__(model)
        self.aggregations = (agg_batch, agg_seq)
        self.head_score = head_score
        self._norms = hidden_norms(model)
        self._sums: dict[str, _Sum] = {}
        shapes = {layer_shape(layer) for layer in decoder_layers(model)}
        if len(shapes) > 1:
            raise ValueError(
                f"the layers have {len(shapes)} different shapes: Pangu Light needs a uniform model, one that was not "
                "pruned layer by layer before"
            )

    def attach(self) -> list[RemovableHandle]:
        """Hook all norms, output projections, down projections and layers."""
        handles = [norm.register_forward_hook(partial(self._on_norm, name=name)) for name, norm in self._norms.items()]
        for index, layer in enumerate(decoder_layers(self.model)):
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            head_norms = self._head_norms(attention.o_proj.weight, layer_shape(layer).num_heads)
            prefix = f"layers.{index}"
            handles += [
                attention.o_proj.register_forward_pre_hook(
                    partial(self._on_input, name=f"{prefix}.self_attn.o_proj", score=head_norms)
                ),
                mlp.down_proj.register_forward_pre_hook(
                    partial(self._on_input, name=f"{prefix}.mlp.down_proj", score=torch.abs)
                ),
                layer.register_forward_hook(partial(self._on_layer, name=prefix)),
            ]
        return handles

    def importance(self) -> Importance:
        """Return the scores of all batches seen.

        Raises:
            ValueError: nothing passed through the model, or an activation was not finite (the first module is named).
        """
        if not self._sums:
            raise ValueError("no batch passed through the model inside the `with` block of ImportanceCollector")
        values = {name: total.value() for name, total in self._sums.items()}
        # Hooks ran in forward order, so the first bad module is where the trouble starts.
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"activations of {name} are not finite: check the weights and the precision")
        layers = range(len(decoder_layers(self.model)))
        return Importance(
            hidden=torch.stack([values[name] for name in self._norms]).sum(0),
            heads=torch.stack([values[f"layers.{index}.self_attn.o_proj"] for index in layers]),
            channels=torch.stack([values[f"layers.{index}.mlp.down_proj"] for index in layers]),
            layers=torch.stack([1 - values[f"layers.{index}"][0] for index in layers]),
        )

    def _on_norm(self, module: nn.Module, args: Any, output: Tensor, *, name: str) -> None:
        self._add(name, wide(output).abs())

    def _on_input(self, module: nn.Module, args: Any, *, name: str, score: Callable[[Tensor], Tensor]) -> None:
        self._add(name, score(wide(args[0])))

    def _on_layer(self, module: nn.Module, args: Any, output: Tensor, *, name: str) -> None:
        cosine = nn.functional.cosine_similarity(wide(args[0]), wide(output), dim=-1)
        self._add(name, cosine[..., None], aggregations=("mean", "mean"))

    def _add(self, name: str, values: Tensor, aggregations: tuple[Aggregation, Aggregation] | None = None) -> None:
        total = self._sums.setdefault(name, _Sum(*(aggregations or self.aggregations)))
        total.add(values, self.mask)

    def _head_norms(self, weight: Tensor, num_heads: int) -> Callable[[Tensor], Tensor]:
        """Return the function from o_proj's input (batch, seq, heads * head_dim) to norms (batch, seq, heads)."""
        if self.head_score == "norm":
            return lambda x: x.unflatten(-1, (num_heads, -1)).norm(dim=-1)
        # ||W_j x||^2 = x' (W_j' W_j) x: the Gram matrix of head_dim^2 costs less than the projection itself.
        blocks = wide(weight.detach()).unflatten(1, (num_heads, -1))
        gram = torch.einsum("ohi,ohj->hij", blocks, blocks)

        def contribution(x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (num_heads, -1))
            squares = (torch.einsum("bshi,hij->bshj", heads, gram) * heads).sum(-1)
            return squares.clamp_min(0).sqrt()

        return contribution


class _Sum:
    """Running aggregate of values (batch, seq, size) over the sequence, then over all sequences."""

    def __init__(self, agg_batch: Aggregation, agg_seq: Aggregation) -> None:
        self.agg_batch = agg_batch
        self.agg_seq = agg_seq
        self.total: Tensor | None = None
        self.weight: Tensor | None = None

    def add(self, values: Tensor, mask: Tensor | None) -> None:
        if self.agg_seq == "l2":
            values = values.square()
        sums, tokens = sum_over_tokens(values, mask)
        per_sequence = sums / tokens.clamp_min(1)
        if self.agg_seq == "l2":
            per_sequence = per_sequence.sqrt()
        if self.agg_batch == "l2":
            per_sequence = per_sequence.square()
        total, weight = (tokens * per_sequence).sum(0), tokens.sum()
        self.total = total if self.total is None else self.total + total
        self.weight = weight if self.weight is None else self.weight + weight

    def value(self) -> Tensor:
        assert self.total is not None
        assert self.weight is not None
        mean = (self.total / self.weight).cpu()
        return mean.sqrt() if self.agg_batch == "l2" else mean
