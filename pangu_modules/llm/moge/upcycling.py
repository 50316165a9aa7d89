"""Upcycling: a dense Llama, Mistral or Qwen2 becomes a mixture of grouped experts, as a plan of structure.

The SwiGLU of each layer is split, not copied: the parameters stay almost the same, and a token uses fewer of them. Its
largest channels become the shared expert, the others N experts of equal width. Channels whose gates look in the same
direction share an expert, and the router starts as each expert's mean direction, so that it prefers experts whose
channels a token would open. Its first logits are small: gates, which the experts' factors multiply by N, are near 1. No
data is needed, and with K = N and even gates the model is the dense one. The paper trains from scratch
(arXiv:2505.21411); the split is a choice of this library.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from pangu_modules.common.config import Config
from pangu_modules.training.module import PanguModule
from pangu_modules.training.structure import Plan

UPCYCLED = ("llama", "mistral", "qwen2")  # model types that compute what PanguProMoE does beside the mixture
ROUNDS = 3  # of moving the clusters' directions; the assignment hardly changes afterwards


class UpcycleConfig(Config):
    """Shape of the mixture, and how its router starts."""

    renamed = {
        "experts_per_token": "num_experts_per_tok",
        "shared_intermediate_size": "shared_expert_intermediate_size",
    }

    num_experts: PositiveInt = Field(32, description="Routed experts of each layer (N).")
    num_groups: PositiveInt = Field(8, description="Groups of experts (M), one or more per device.")
    num_experts_per_tok: PositiveInt = Field(16, description="Experts each token is sent to (K); MoGE: K/M per group.")
    shared_expert_intermediate_size: NonNegativeInt = Field(
        768, description="FFN channels that all tokens use, as the shared expert; the rest is split evenly."
    )
    router: Literal["moge", "topk", "deepseek"] = Field("moge", description="How tokens choose; others are baselines.")
    router_start: NonNegativeFloat = Field(
        0.05,
        description="Norm of each expert's first router row: enough to choose by, too little to make gates uneven; 0: "
        "even gates, and the first experts of each group for all tokens.",
    )
    routed_scale: PositiveFloat = Field(
        1.0, description="First output of an evenly gated expert, in units of what its channels gave in the dense FFN."
    )


class UpcyclePlan(Plan):
    """Dense model to PanguProMoE; give it in ``CausalLM.Config(model=..., structure=(UpcyclePlan(...),))``."""

    kind: Literal["upcycle"] = "upcycle"
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="Shape of the mixture.")

    def apply(self, module: PanguModule) -> None:  # type: ignore[override]
        """Replace ``module.model`` by the mixture.

        Raises:
            ValueError: PanguProMoE cannot compute what the model does, or the sizes do not fit.
        """
        kernel = str(getattr(module.config, "attn_implementation", "sdpa"))
        module.model = upcycle(module.model, self.upcycle, attn_implementation=kernel)


@torch.no_grad()
def upcycle(dense: nn.Module, config: UpcycleConfig, *, attn_implementation: str = "sdpa") -> nn.Module:
    """Return a `PanguProMoEForCausalLM` made of a dense model, which is used up: attention and norms move over.

    The type and device of the weights stay; on the meta device only shapes are made. Qwen2 has biases on q, k and v;
    the one on o, which the mixture has with them, starts at 0.

    Raises:
        ValueError: PanguProMoE cannot compute what the model does, or the sizes do not fit.
    """
    from transformers import AutoModelForCausalLM

    moge_config = upcycled_config(dense.config, config)
    first = next(dense.parameters())
    with torch.device("meta"):
        options = {"dtype": first.dtype, "attn_implementation": attn_implementation}
        model: Any = AutoModelForCausalLM.from_config(moge_config, **options)
    old: Any = dense
    model.lm_head, model.model.embed_tokens = old.lm_head, old.model.embed_tokens
    model.model.norm, model.model.rotary_emb = old.model.norm, old.model.rotary_emb
    for sparse, layer in zip(model.model.layers, old.model.layers, strict=True):
        _move_attention(layer.self_attn, sparse.self_attn)
        sparse.input_layernorm, sparse.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        sparse.mlp.to_empty(device=first.device)
        if first.device.type != "meta":
            _split(layer.mlp, sparse.mlp, config)
    model.generation_config = old.generation_config
    return model.train(dense.training)


def upcycled_config(dense: Any, config: UpcycleConfig) -> Any:
    """Return the mixture's transformers configuration.

    Raises:
        ValueError: see `upcycle`.
    """
    from pangu_modules.llm.moge.modeling import PanguProMoEConfig  # makes transformers know the model

    _refuse_what_the_mixture_lacks(dense)
    rest = dense.intermediate_size - config.shared_expert_intermediate_size
    if rest < config.num_experts or rest % config.num_experts:
        near = dense.intermediate_size - max(1, rest // config.num_experts) * config.num_experts
        remedy = f"shared_expert_intermediate_size={near} would do" if near >= 0 else "take fewer experts"
        raise ValueError(
            f"upcycle: intermediate_size={dense.intermediate_size} less shared_expert_intermediate_size="
            f"{config.shared_expert_intermediate_size} leaves {rest} channels, which num_experts="
            f"{config.num_experts} must divide: {remedy}"
        )
    copied = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "attention_dropout", "max_position_embeddings", "rope_parameters", "rms_norm_eps",
        "initializer_range", "tie_word_embeddings", "bos_token_id", "pad_token_id", "eos_token_id",
    )  # fmt: skip
    return PanguProMoEConfig(
        **{name: getattr(dense, name) for name in copied},
        head_dim=getattr(dense, "head_dim", None),  # None: hidden_size / num_attention_heads, there as here
        attention_bias=dense.model_type == "qwen2" or getattr(dense, "attention_bias", False),
        num_experts=config.num_experts,
        num_groups=config.num_groups,
        num_experts_per_tok=config.num_experts_per_tok,
        moe_intermediate_size=rest // config.num_experts,
        shared_expert_intermediate_size=config.shared_expert_intermediate_size,
        router=config.router,
        router_scale=True,
    )


def _refuse_what_the_mixture_lacks(dense: Any) -> None:
    """Raise a ValueError that names what the dense model computes and PanguProMoE does not."""
    kind = dense.model_type
    window = getattr(dense, "sliding_window", None)
    slides = "sliding_attention" in (getattr(dense, "layer_types", None) or ["sliding_attention"])
    reason = None
    if kind == "qwen3":
        reason = "norms on queries and keys"
    elif kind in UPCYCLED and window is not None and slides and window < dense.max_position_embeddings:
        reason = f"a sliding window of {window} positions"
    elif kind in UPCYCLED and getattr(dense, "layer_shapes", None):
        reason = "layers that pruning gave different sizes or biases"
    if reason is not None:
        raise ValueError(f"upcycle: the model is of type {kind!r} and has {reason}, which PanguProMoE does not")
    if kind not in UPCYCLED or getattr(dense, "mlp_bias", False) or dense.hidden_act != "silu":
        raise ValueError(
            f"upcycle: the model is of type {kind!r}; a Llama, Mistral or Qwen2 with SiLU and without MLP biases can "
            "be upcycled (e.g. 'smollm2')"
        )


def _move_attention(dense: Any, sparse: Any) -> None:
    """Give the mixture's attention the dense one's matrices; a bias that only the mixture has is 0."""
    for name, linear in sparse.named_children():
        own = getattr(dense, name)
        if linear.bias is not None and own.bias is None:
            own.bias = nn.Parameter(torch.zeros_like(own.weight[:, 0]))
        setattr(sparse, name, own)


def _split(dense: Any, block: Any, config: UpcycleConfig) -> None:
    """Fill a block with the channels of a dense SwiGLU."""
    gate, up, down = (layer.weight.detach() for layer in (dense.gate_proj, dense.up_proj, dense.down_proj))
    shared, experts = assign_channels(gate, up, down, config.shared_expert_intermediate_size, config.num_experts)
    if block.shared_expert is not None:
        block.shared_expert.gate_proj.weight.copy_(gate[shared])
        block.shared_expert.up_proj.weight.copy_(up[shared])
        block.shared_expert.down_proj.weight.copy_(down[:, shared])
    block.experts.gate_up_proj.copy_(torch.cat((gate[experts], up[experts]), dim=1))
    block.experts.down_proj.copy_(down[:, experts].transpose(0, 1))
    directions = F.normalize(gate[experts].float(), dim=-1).mean(1)
    directions = directions - directions.mean(0)  # what all experts have in common chooses none of them
    norm = directions.norm(dim=-1).mean().clamp(min=1e-12)
    block.gate.weight.copy_(config.router_start * directions / norm)
    block.router_scale.fill_(config.routed_scale * config.num_experts)  # even gates are 1/N
    if block.gate.e_score_correction_bias is not None:
        block.gate.e_score_correction_bias.zero_()


def assign_channels(
    gate: Tensor, up: Tensor, down: Tensor, shared_size: int, num_experts: int
) -> tuple[Tensor, Tensor]:
    """Return which channels become the shared expert, (shared,), and each routed one, (N, width), all int64.

    Shared are the channels of the largest product of norms. The others are clustered by the direction of their gates
    into clusters of equal size: in turn, each cluster takes the free channel closest to its direction.

    Args:
        gate: (I, h).
        up: (I, h).
        down: (h, I).
        shared_size: channels of the shared expert.
        num_experts: N, divides the rest.
    """
    size = gate.float().norm(dim=1) * up.float().norm(dim=1) * down.float().norm(dim=0)
    order = size.argsort(descending=True, stable=True)
    shared, rest = order[:shared_size].sort().values, order[shared_size:].sort().values
    directions = F.normalize(gate[rest].float(), dim=1)
    # Evenly spaced channels start the clusters; the result depends on weights alone.
    centers = directions[torch.linspace(0, len(rest) - 1, num_experts).round().long()]
    for _ in range(ROUNDS):
        members = balanced_assignment(directions @ centers.T)
        centers = F.normalize(directions[members].mean(1), dim=1)
    return shared, rest[members].sort(dim=1).values


def balanced_assignment(similarity: Tensor) -> Tensor:
    """Return (N, n / N) int64: each cluster's members, chosen in turn by largest similarity (n, N) among the free."""
    num_members, num_clusters = similarity.shape
    free = similarity.T.clone()  # (N, n)
    members = torch.empty(num_clusters, num_members // num_clusters, dtype=torch.int64, device=similarity.device)
    for turn in range(members.shape[1]):
        for cluster in range(num_clusters):
            chosen = free[cluster].argmax()
            members[cluster, turn] = chosen
            free[:, chosen] = -torch.inf
    return members
