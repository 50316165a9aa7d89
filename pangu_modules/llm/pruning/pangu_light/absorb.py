"""Absorption of post-norms into the linear map before them (Pangu Light, arXiv:2505.20155).

In a sandwich-norm layer the post-norm follows a linear map: ``y = gamma * u / RMS(u)`` with ``u = W z``. With the
token-dependent RMS replaced by a constant sigma from calibration, the norm is a scale per channel and folds into W:

    W <- diag(gamma / sigma) W

and the model is a plain pre-norm Llama. The constant costs perplexity, so either a short recovery heals it
(``order="heal"``), or it is the last step (``order="at_end"``) of a model whose loss is seen to be small.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pangu_modules.common.config import Config
from pangu_modules.llm.calibration.probe import Probe, run
from pangu_modules.llm.calibration.statistics import wide
from pangu_modules.llm.models.decoder import decoder_layers
from pangu_modules.llm.pruning.pangu_light.slnp import POST_NORMS
from pangu_modules.training.objectives import Batch
from pangu_modules.training.structure import Plan

Sigma = Literal["mean_rms", "rms_mean", "inv_mean_inv"]
LINEAR_BEFORE = dict(zip(POST_NORMS, ("self_attn.o_proj", "mlp.down_proj"), strict=True))


class AbsorbConfig(Config):
    """How the post-norms of a sandwich-norm model are removed for inference."""

    enabled: bool = Field(False, description="Fold the post-norms into the linear maps before them (2.6).")
    sigma: Sigma = Field(
        "mean_rms",
        description="Constant for RMS(u): mean of the RMS, root of the mean square, or 1 / mean(1 / RMS).",
    )
    order: Literal["heal", "at_end"] = Field(
        "heal", description="Absorb before recovery training, which heals the loss, or as the last step."
    )
    skip_first_token: bool = Field(
        True, description="Leave each sequence's first token (attention sink) out of the constant."
    )
    max_ppl_increase: PositiveFloat = Field(
        0.02, description="Largest relative rise of perplexity accepted, after healing where order is 'heal'."
    )


class PostNormStatistics(Config):
    """RMS(u) before one post-norm, over the tokens that entered its constant."""

    measured: ClassVar[bool] = True

    sigma: float = Field(description="Constant that replaces RMS(u).")
    variation: float = Field(description="Standard deviation of RMS(u) divided by its mean.")
    first_token_error: float = Field(
        description="Mean of |RMS(u) / sigma - 1| over the sequences' first tokens: the error made there."
    )


def absorb_post_norms(
    model: nn.Module, batches: Sequence[Batch], *, sigma: Sigma = "mean_rms", skip_first_token: bool = True
) -> tuple[nn.Module, dict[str, PostNormStatistics]]:
    """Return a plain pre-norm model with the post-norms folded in, and the statistics by norm name.

    The given model is not changed. Where Llama's configuration refuses the sizes (hidden size no multiple of the
    heads), the result is a Mistral without sliding window, the same computation. A pre-norm model has nothing to
    absorb: it is returned itself, with a warning and no statistics.

    Args:
        model: `SandwichLlamaForCausalLM`.
        batches: calibration batches.
        sigma: estimator of the constant.
        skip_first_token: leave the first real token of every sequence out of the constant.

    Raises:
        ValueError: a post-norm does not directly follow its linear map, or its input is zero on all tokens.
    """
    if not _post_norm_names(model):
        warnings.warn("absorption does nothing: the model has no post-norms (it is a pre-norm model)", stacklevel=2)
        return model, {}
    statistics = post_norm_statistics(model, batches, sigma=sigma, skip_first_token=skip_first_token)
    return _fold(model, {name: entry.sigma for name, entry in statistics.items()}), statistics


def post_norm_statistics(
    model: nn.Module, batches: Sequence[Batch], *, sigma: Sigma = "mean_rms", skip_first_token: bool = True
) -> dict[str, PostNormStatistics]:
    """Return sigma and the spread of RMS(u) for every post-norm, by name (``layers.0.post_mlp_layernorm``).

    RMS(u) is what the norm divides by, ``sqrt(mean(u^2) + eps)``.

    Raises:
        ValueError: a post-norm does not directly follow its linear map, or no token is left for the constant.
    """
    with _PostNormProbe(model) as probe:
        run(model, batches)
    return {
        name: _statistics(name, torch.cat(probe.others[name]), torch.cat(probe.first[name]), sigma, skip_first_token)
        for name in probe.others
    }


class AbsorbPlan(Plan):
    """The post-norms are gone: a plain model stands where the base model is a sandwich."""

    kind: str = "absorb"

    def apply(self, module: Any) -> None:
        """Replace ``module.model`` by the plain model of its sizes, for weights loaded afterwards.

        A model without post-norms is left alone.
        """
        names = _post_norm_names(module.model)
        if names:
            module.model = _fold(module.model, dict.fromkeys(names, 1.0))


def check_absorption(before: float, after: float, config: AbsorbConfig) -> None:
    """Raise if absorption (and healing, where there was some) raised the perplexity by more than the configured share.

    Args:
        before: perplexity of the sandwich model.
        after: perplexity of the absorbed model.
        config: names the limit.

    Raises:
        ValueError: the rise is too large.
    """
    if not after <= before * (1 + config.max_ppl_increase):
        remedy = "train longer after absorption" if config.order == "heal" else "use order='heal'"
        raise ValueError(
            f"absorption raised the perplexity from {before:.3f} to {after:.3f} ({after / before - 1:+.1%}), more than "
            f"absorb.max_ppl_increase={config.max_ppl_increase}: {remedy}, or raise the limit"
        )


# Helpers.


def _post_norm_names(model: nn.Module) -> list[str]:
    layers = enumerate(decoder_layers(model))
    return [f"layers.{index}.{name}" for index, layer in layers for name in POST_NORMS if hasattr(layer, name)]


class _PostNormProbe(Probe):
    """Records RMS(u) of every token before every post-norm, first tokens apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.outputs: dict[str, Tensor] = {}
        self.first: dict[str, list[Tensor]] = {}
        self.others: dict[str, list[Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Hook every post-norm's input and the output of the linear map before it."""
        handles = []
        for index, layer in enumerate(decoder_layers(self.model)):
            for norm_name, linear_name in LINEAR_BEFORE.items():
                name = f"layers.{index}.{norm_name}"
                linear = layer.get_submodule(linear_name)
                if not isinstance(linear, nn.Linear):
                    raise ValueError(f"{name} follows {linear_name}, a {type(linear).__name__}: only a Linear absorbs")
                handles += [
                    linear.register_forward_hook(partial(self._on_linear, name=name)),
                    layer.get_submodule(norm_name).register_forward_pre_hook(partial(self._on_norm, name=name)),
                ]
        return handles

    def _on_linear(self, module: nn.Module, args: Any, output: Tensor, *, name: str) -> None:
        self.outputs[name] = output

    def _on_norm(self, module: Any, args: Any, *, name: str) -> None:
        u: Tensor = args[0]
        produced = self.outputs.pop(name, None)
        if produced is not u:
            raise ValueError(f"{name} does not directly follow its linear map: it cannot be absorbed")
        rms = (wide(u).square().mean(-1) + module.variance_epsilon).sqrt()
        real = torch.ones_like(rms, dtype=torch.bool) if self.mask is None else self.mask
        is_first = real & (real.cumsum(1) == 1)
        self.first.setdefault(name, []).append(rms[is_first].cpu().double())
        self.others.setdefault(name, []).append(rms[real & ~is_first].cpu().double())


def _statistics(name: str, others: Tensor, first: Tensor, sigma: Sigma, skip_first: bool) -> PostNormStatistics:
    rms = others if skip_first else torch.cat([first, others])
    if len(rms) == 0:
        raise ValueError(f"{name}: no token is left for the constant; calibrate on sequences of two tokens or more")
    value = {
        "mean_rms": lambda: rms.mean(),
        "rms_mean": lambda: rms.square().mean().sqrt(),
        "inv_mean_inv": lambda: 1 / (1 / rms).mean(),
    }[sigma]()
    if not math.isfinite(value) or value == 0:
        raise ValueError(f"{name}: RMS(u) averages to {float(value)}; check the weights and the precision")
    return PostNormStatistics(
        sigma=float(value),
        variation=float(rms.std(correction=0) / rms.mean()),
        first_token_error=float((first / value - 1).abs().mean()),
    )


@torch.no_grad()
def _fold(model: Any, sigmas: dict[str, float]) -> nn.Module:
    """Return the plain model whose output maps carry ``gamma / sigma``; one copy of the weights is made."""
    state = dict(model.state_dict())
    prefix = model.base_model_prefix
    for name, sigma in sigmas.items():
        layer_name, norm_name = name.rsplit(".", 1)
        gain = state.pop(f"{prefix}.{name}.weight") / sigma
        linear = f"{prefix}.{layer_name}.{LINEAR_BEFORE[norm_name]}"
        state[f"{linear}.weight"] = state[f"{linear}.weight"] * gain[:, None]
        if f"{linear}.bias" in state:
            state[f"{linear}.bias"] = state[f"{linear}.bias"] * gain
    plain = _plain_model(model.config).to(device=model.device, dtype=model.dtype)
    plain.load_state_dict(state)
    if model.generation_config is not None:
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.train(model.training)


def _plain_model(config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    fields = {name: value for name, value in config.to_dict().items() if name in LlamaConfig().to_dict()}
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    if hasattr(config, "pruned_with"):
        fields["pruned_with"] = config.pruned_with
    if config.hidden_size % config.num_attention_heads == 0:
        return LlamaForCausalLM(LlamaConfig(**fields))
    if config.attention_bias or config.mlp_bias:
        raise ValueError(
            f"hidden_size={config.hidden_size} is no multiple of {config.num_attention_heads} heads, which Llama's "
            "configuration refuses, and Mistral has no biases: prune to a multiple of the heads"
        )
    kept = {name: value for name, value in fields.items() if name in [*MistralConfig().to_dict(), "pruned_with"]}
    return MistralForCausalLM(MistralConfig(**kept | {"sliding_window": None}))
