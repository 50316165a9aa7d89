"""Binary-aware initialization: input-channel scales S_t before training, folded into the model or kept per layer.

The weights become W / S_t and the inputs S_t x, so the dense function stays; what is binarized is W / S_t (stage 1 of
arXiv:2508.06974, its appendix A). With S_t > 0 no sign changes: the binary weight is ``sign(W)`` times a row scale
``mean_k |W_ik| / S_k`` times a column scale ``S_j``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pangu_modules.llm.losses import labels_of, per_sequence_loss
from pangu_modules.llm.models import decoder
from pangu_modules.llm.onebit.config import OneBitConfig
from pangu_modules.llm.onebit.layer import rank_one_magnitudes
from pangu_modules.llm.onebit.plan import binary_layers, target_names
from pangu_modules.llm.onebit.weight_functions import signs
from pangu_modules.training.objectives import Batch, weighted_mean

Context = Callable[[], AbstractContextManager[Any]]
DIVERGED = 1.5
"""Stage 1 stops with an error when its loss exceeds its start by this factor."""


@dataclass(frozen=True)
class Group:
    """Layers that share one input scale, and where the scale goes when it is folded.

    Attributes:
        readers: names of the linear layers that read these channels.
        binary: those of them that are binarized.
        source: module whose outputs the channels are: a norm (its gain is multiplied) or a linear layer (its rows);
            empty for a scale that stays with its layer.
        channels: number of scales.
        repeats: query heads that share a KV head, where the channels are those of KV heads; otherwise 1.
        width: channels that are repeated together: the size of a head.
    """

    readers: tuple[str, ...]
    binary: tuple[str, ...]
    source: str
    channels: int
    repeats: int = 1
    width: int = 1

    def spread(self, scale: Tensor) -> Tensor:
        """Return the scale of each input channel of the readers, from (channels,)."""
        return scale.view(-1, self.width).repeat_interleave(self.repeats, dim=0).flatten()

    def gathered(self, weight: Tensor) -> Tensor:
        """Return a reader's weight with its repeated channels stacked as rows: (out * repeats, channels)."""
        out = weight.shape[0]
        return weight.view(out, -1, self.repeats, self.width).transpose(1, 2).reshape(out * self.repeats, self.channels)


@dataclass(frozen=True)
class InitReport:
    """What the initialization did.

    Attributes:
        losses: language-model loss of the binarized model before each step of init="learned"; empty otherwise.
        input_scales: scales that stay at run time, by layer; empty if folded.
    """

    losses: list[float] = field(default_factory=list)
    input_scales: dict[str, Tensor] = field(default_factory=dict)


def binary_aware_init(
    model: nn.Module,
    batches: Iterable[Batch],
    config: OneBitConfig,
    context: Context = nullcontext,
) -> InitReport:
    """Find S_t, divide the dense weights by it in place, and fold it or return it.

    Args:
        model: a transformers causal LM with dense layers.
        batches: text for init="learned", one batch per step, repeated if there are fewer; unused otherwise.
        config: what to do.
        context: makes the context of a forward pass, e.g. autocast.

    Raises:
        ValueError: the block layout is unknown and scales cannot be folded, or stage 1 diverges.
    """
    groups = folding_groups(model, config) if config.input_scale == "fold" else single_groups(model, config)
    if config.init == "learned":
        scales, losses = learned_scales(model, list(batches), config, groups, context)
    else:
        scales, losses = [_rank_one_scale(model, group) for group in groups], []
    return InitReport(losses, apply_scales(model, groups, scales))


def set_input_scales(model: nn.Module, input_scales: Mapping[str, Tensor]) -> None:
    """Give the binary layers of a model the scales that were not folded."""
    layers = binary_layers(model)
    for name, scale in input_scales.items():
        own = layers[name].in_scale
        assert own is not None
        own.copy_(scale)


# Which layers share a scale.


def single_groups(model: nn.Module, config: OneBitConfig) -> list[Group]:
    """Return a group of its own for every binarized layer."""
    return [Group((name,), (name,), "", _weight(model, name).shape[1]) for name in target_names(model, config)]


def folding_groups(model: nn.Module, config: OneBitConfig) -> list[Group]:
    """Return the groups of each decoder layer: the readers of either norm, down_proj, and o_proj.

    The gated product is linear in up_proj, so down_proj's scale multiplies its rows; o_proj's multiplies the rows of
    v_proj, and is shared by all query heads of a KV head.

    Raises:
        ValueError: the architecture's blocks are not known.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in decoder.SUPPORTED_MODEL_TYPES:
        known = ", ".join(sorted(decoder.SUPPORTED_MODEL_TYPES))
        raise ValueError(
            f"input_scale='fold' does not know the blocks of {model_type!r} (it knows {known}): set "
            "input_scale='per_linear', or init='none'"
        )
    targets = set(target_names(model, config))
    layers = decoder.decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    groups = []
    for index, layer in enumerate(layers):
        shape = decoder.layer_shape(layer)
        start = f"{prefix}.{index}"
        attention = tuple(f"{start}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        gates = tuple(f"{start}.mlp.{name}" for name in ("gate_proj", "up_proj"))
        output, down = (f"{start}.self_attn.o_proj",), (f"{start}.mlp.down_proj",)
        kv_channels = shape.num_kv_heads * shape.head_dim
        hidden = _weight(model, attention[0]).shape[1]
        groups += [
            Group(attention, _both(attention, targets), f"{start}.input_layernorm", hidden),
            Group(gates, _both(gates, targets), f"{start}.post_attention_layernorm", hidden),
            Group(down, _both(down, targets), gates[1], shape.intermediate_size),
            Group(output, _both(output, targets), attention[2], kv_channels, shape.queries_per_group, shape.head_dim),
        ]
    return [group for group in groups if group.binary]


def _both(names: tuple[str, ...], targets: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in targets)


# Finding and applying the scales.


def learned_scales(
    model: nn.Module,
    batches: list[Batch],
    config: OneBitConfig,
    groups: list[Group],
    context: Context,
) -> tuple[list[Tensor], list[float]]:
    """Train S_t = exp(u) of every group with the language-model loss, all else frozen; return scales and losses.

    Raises:
        ValueError: there is no batch, or the loss grows beyond 1.5 times its start.
    """
    if not batches:
        raise ValueError("init='learned' needs at least one batch of text; give more data, or set init='svid'")
    device = next(model.parameters()).device
    logs = [torch.zeros(group.channels, device=device, requires_grad=True) for group in groups]
    optimizer = torch.optim.Adam(logs, lr=config.init_lr)
    losses: list[float] = []
    for step in range(config.init_steps):
        batch = {name: value.to(device) for name, value in batches[step % len(batches)].items() if _is_tensor(value)}
        binary = binary_weights(model, groups, [log.exp() for log in logs])
        with context():
            loss = _language_model_loss(model, binary, batch)
        gradients = torch.autograd.grad(loss, logs)  # not backward(): the model's parameters stay without gradients
        losses.append(float(loss.detach()))
        if not losses[-1] <= DIVERGED * losses[0]:
            raise ValueError(
                f"init='learned' diverges: its loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {step} steps; "
                f"lower init_lr={config.init_lr:g}, or set init='svid' or 'none'"
            )
        for log, gradient in zip(logs, gradients, strict=True):
            log.grad = gradient
        optimizer.step()
    return [log.detach().exp() for log in logs], losses


def binary_weights(model: nn.Module, groups: list[Group], scales: list[Tensor]) -> dict[str, Tensor]:
    """Return ``sign(W_ij) mean_k(|W_ik| / S_k) S_j`` of all binarized layers, by parameter name."""
    weights = {}
    for group, scale in zip(groups, scales, strict=True):
        columns = group.spread(scale)
        for name in group.binary:
            weight = _weight(model, name).detach()
            rows = (weight.abs() / columns).mean(1, keepdim=True)
            weights[f"{name}.weight"] = signs(weight) * rows * columns
    return weights


@torch.no_grad()
def apply_scales(model: nn.Module, groups: list[Group], scales: list[Tensor]) -> dict[str, Tensor]:
    """Divide the readers' weights by their scales and multiply the sources; return the scales without a source."""
    staying = {}
    for group, scale in zip(groups, scales, strict=True):
        for name in group.readers:
            _weight(model, name).div_(group.spread(scale))
        if not group.source:
            staying[group.readers[0]] = scale
    for group, scale in zip(groups, scales, strict=True):  # all divisions come first: a source may be a reader too
        if group.source:
            source: Any = model.get_submodule(group.source)
            source.weight.mul_(scale[:, None] if source.weight.ndim == 2 else scale)
            if getattr(source, "bias", None) is not None:
                source.bias.mul_(scale)
    return staying


def _rank_one_scale(model: nn.Module, group: Group) -> Tensor:
    """Return the right rank-1 factor of |W| of the group's binarized layers, with mean 1."""
    stacked = torch.cat([group.gathered(_weight(model, name).detach()) for name in group.binary])
    return rank_one_magnitudes(stacked)[1]


def _language_model_loss(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    output = functional_call(model, weights, kwargs={**inputs, "use_cache": False})
    loss = weighted_mean(per_sequence_loss(output.logits, labels_of(batch)), batch.get("sample_weight"))
    if not math.isfinite(float(loss.detach())):
        raise ValueError("init='learned': the loss is not finite; lower init_lr, or set init='svid'")
    return loss


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Any = model.get_submodule(name).weight
    return weight


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
