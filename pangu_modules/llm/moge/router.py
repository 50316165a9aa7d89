"""Routers of mixtures of experts in one family: MoGE, plain top-k, and DeepSeek's group-limited router.

MoGE (Pangu Pro MoE, arXiv:2505.21411, section 2): with scores ``s = softmax(x W^T)`` over all N experts, every token
takes the best K' = K / M experts of each of M groups of consecutive experts. Devices that hold whole groups then
receive the same number of token-rows for every batch. Gates are the selected global softmax values as they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable

ROUTER_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class Routing(NamedTuple):
    """What a router decides for T tokens.

    Args:
        weights: (T, K), gates of the selected experts, in the router's type.
        expert_ids: (T, K) int64. From a MoGE router, column block g of K' columns belongs to group g.
        scores: (T, N), each token's distribution over all experts, before any selection; rows sum to 1.
        logits: (T, N), what the scores come from.
    """

    weights: Tensor
    expert_ids: Tensor
    scores: Tensor
    logits: Tensor


class Router(Configurable, nn.Module):
    """Linear router: logits ``x W^T`` without bias, then the selection that `config.router` names.

    ``weight`` (N, h) is the only parameter. The ``deepseek`` router also has a buffer ``e_score_correction_bias`` (N,).

    Args:
        config: the router's fields; those of a whole block will do.
        layer_idx: named in messages.
    """

    class Config(BaseConfig):
        """Sizes of the mixture and how tokens choose their experts."""

        hidden_size: PositiveInt = Field(5120, description="Width of a token (h).")
        num_experts: PositiveInt = Field(64, description="Routed experts (N).")
        num_groups: PositiveInt = Field(8, description="Groups of consecutive experts (M), one or more per device.")
        experts_per_token: PositiveInt = Field(8, description="Experts each token is sent to (K); MoGE: K/M per group.")
        router: Literal["moge", "topk", "deepseek"] = Field(
            "moge", description="moge: K/M of each group; topk: the best K; deepseek: the best K of the best groups."
        )
        norm_topk_prob: bool = Field(False, description="Divide the gates by their sum (the paper does not).")
        router_dtype: Literal["float32", "float64", "bfloat16"] = Field(
            "float32", description="Type of logits and scores; ties of bfloat16 change the selection."
        )
        router_jitter: float = Field(
            0.0, ge=0, lt=1, description="Training: the router sees x times noise from [1 - jitter, 1 + jitter]."
        )
        num_voted_experts: PositiveInt | None = Field(
            None, description="Inference only: keep this many experts of each group, those most tokens ask for."
        )
        kept_groups: PositiveInt | None = Field(
            None, description="deepseek: groups a token may visit (topk_group); empty: all of them."
        )
        gate_scaling_factor: float = Field(1.0, gt=0, description="deepseek: the gates are multiplied by this.")
        bias_update_speed: float = Field(
            0.001, ge=0, description="deepseek: step of the selection bias of one `update_bias`, in units of a score."
        )
        check_logits: bool = Field(
            True, description="Raise on NaN logits; costs an accelerator one synchronisation per layer."
        )

        @model_validator(mode="after")
        def _check_selection(self) -> Self:
            check_selection(self)
            return self

    config: Config

    def __init__(self, config: Config, *, layer_idx: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor | None
        bias = torch.zeros(config.num_experts) if config.router == "deepseek" else None
        self.register_buffer("e_score_correction_bias", bias)
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the weight from N(0, std^2)."""
        nn.init.normal_(self.weight, std=std)

    def forward(self, hidden_states: Tensor, router_scale: Tensor | None = None) -> Routing:
        """Route T tokens.

        Args:
            hidden_states: (T, h).
            router_scale: (1, N), multiplies the gates after the selection; None for 1.

        Raises:
            ValueError: logits are NaN, or `num_voted_experts` is set in training mode.
        """
        config = self.config
        logits = self.logits(hidden_states)
        if config.router == "deepseek":
            routing = route_deepseek(
                logits,
                config.num_groups,
                config.experts_per_token,
                kept_groups=config.kept_groups,
                bias=self.e_score_correction_bias,
            )
        elif config.router == "topk":
            routing = route_topk(logits, config.experts_per_token)
        else:
            routing = route_moge(logits, config.num_groups, config.experts_per_token, self._votes())
        self._check(routing.scores)
        weights = routing.weights
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if config.gate_scaling_factor != 1:
            weights = weights * config.gate_scaling_factor
        if router_scale is not None:
            weights = weights * router_scale.to(weights.dtype)[0][routing.expert_ids]
        return routing._replace(weights=weights)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return the logits (T, N) in the router's type, under autocast too."""
        config = self.config
        dtype = ROUTER_DTYPES[config.router_dtype]
        if self.weight.dtype == torch.float64:  # a model in float64 is routed in float64
            dtype = torch.float64
        x = hidden_states.to(dtype)
        if self.training and config.router_jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - config.router_jitter, 1 + config.router_jitter)
        device = hidden_states.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            return F.linear(x, self.weight.to(dtype))

    @torch.no_grad()
    def update_bias(self, counts: Tensor) -> None:
        """Move the selection bias of the deepseek router towards balance (arXiv:2412.19437, section 2.1.2).

        Args:
            counts: (N,), tokens that each expert received since the last update, over all ranks.

        Raises:
            ValueError: this router has no bias.
        """
        if self.e_score_correction_bias is None:
            raise ValueError(f"router={self.config.router!r} has no selection bias: update_bias is for 'deepseek'")
        counts = counts.to(self.e_score_correction_bias)
        self.e_score_correction_bias += self.config.bias_update_speed * torch.sign(counts.mean() - counts)

    def _votes(self) -> int | None:
        if self.config.num_voted_experts is not None and self.training:
            raise ValueError(
                f"num_voted_experts={self.config.num_voted_experts} makes a token's experts depend on the other tokens "
                "of the batch and is for inference: call model.eval(), or leave num_voted_experts empty"
            )
        return self.config.num_voted_experts

    def _check(self, scores: Tensor) -> None:
        if not self.config.check_logits or scores.is_meta or torch.compiler.is_compiling():
            return
        if bool(torch.isnan(scores.detach().sum())):
            where = "" if self.layer_idx is None else f" of layer {self.layer_idx}"
            raise ValueError(
                f"router{where}: logits are NaN or infinite, no expert can be chosen; the tokens' hidden states or "
                "the gate's weight are not finite (lower the learning rate, clip gradients, or look for the first "
                "layer with such values)"
            )

    def extra_repr(self) -> str:
        """Name the router and its sizes in `repr`."""
        config = self.config
        return (
            f"{config.router}, experts={config.num_experts}, groups={config.num_groups}, k={config.experts_per_token}"
        )


def route_moge(
    logits: Tensor, num_groups: int, experts_per_token: int, num_voted_experts: int | None = None
) -> Routing:
    """Select the best K' = K / M experts of each group by a softmax over all experts (arXiv:2505.21411, section 2).

    This is the seam for a fused routing operator: it must return the same `Routing`, ids group after group.

    Args:
        logits: (T, N); group g owns experts g N/M ... (g+1) N/M - 1.
        num_groups: M, divides N and K.
        experts_per_token: K.
        num_voted_experts: keep only this many experts of each group, those that are the first choice of most tokens.
    """
    num_tokens, num_experts = logits.shape
    scores = logits.softmax(-1)
    grouped = scores.view(num_tokens, num_groups, num_experts // num_groups)
    if num_voted_experts is not None:
        grouped = grouped * voted(grouped, num_voted_experts)
    if experts_per_token == num_groups:  # K' = 1: a maximum, much cheaper than topk
        weights, local_ids = grouped.max(-1)
    else:
        weights, local_ids = grouped.topk(experts_per_token // num_groups, dim=-1)
        weights, local_ids = weights.flatten(1), local_ids.flatten(1)
    first = torch.arange(0, num_experts, num_experts // num_groups, device=logits.device)
    expert_ids = local_ids + first.repeat_interleave(experts_per_token // num_groups)
    return Routing(weights, expert_ids, scores, logits)


def voted(grouped: Tensor, num_voted_experts: int) -> Tensor:
    """Return a mask (1, M, N/M): 1 for the experts of each group that are the first choice of most tokens.

    Args:
        grouped: (T, M, N/M) scores.
        num_voted_experts: experts to keep in each group; of equally many votes the lower numbers are kept.
    """
    votes = F.one_hot(grouped.argmax(-1), grouped.shape[-1]).sum(0)
    order = votes.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(votes, dtype=grouped.dtype)
    return mask.scatter(-1, order[:, :num_voted_experts], 1.0)[None]


def route_topk(logits: Tensor, experts_per_token: int) -> Routing:
    """Select the best K experts by a softmax over all of them, without groups; `logits` is (T, N)."""
    scores = logits.softmax(-1)
    weights, expert_ids = scores.topk(experts_per_token, dim=-1)
    return Routing(weights, expert_ids, scores, logits)


def route_deepseek(
    logits: Tensor,
    num_groups: int,
    experts_per_token: int,
    *,
    kept_groups: int | None = None,
    bias: Tensor | None = None,
) -> Routing:
    """Select the best K experts of each token's best groups, by sigmoid scores (DeepSeek-V3, arXiv:2412.19437).

    A group counts by the sum of its two best biased scores; gates are the unbiased scores. `Routing.scores` are the
    sigmoids divided by their sum.

    Args:
        logits: (T, N).
        num_groups: groups of consecutive experts.
        experts_per_token: K.
        kept_groups: groups that stay; None for all, which is plain top-k over the biased scores.
        bias: (N,), added to the scores for the selection only.
    """
    sigmoids = logits.sigmoid()
    choice = sigmoids.detach() if bias is None else sigmoids.detach() + bias.to(sigmoids.dtype)
    if kept_groups is not None and kept_groups < num_groups:
        grouped = choice.unflatten(-1, (num_groups, -1))
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = group_scores.topk(kept_groups, dim=-1).indices
        mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, kept, True)
        choice = grouped.masked_fill(~mask[..., None], -torch.inf).flatten(1)
    expert_ids = choice.topk(experts_per_token, dim=-1).indices
    scores = sigmoids / (sigmoids.sum(-1, keepdim=True) + 1e-20)
    return Routing(sigmoids.gather(-1, expert_ids), expert_ids, scores, logits)


def check_selection(config: Router.Config) -> None:
    """Refuse sizes that leave some token without its K experts.

    Raises:
        ValueError: names the fields, their values and what would be valid.
    """
    experts, groups, chosen = config.num_experts, config.num_groups, config.experts_per_token
    if config.router == "topk":
        if chosen > experts:
            raise ValueError(f"experts_per_token (K) = {chosen} must not exceed num_experts (N) = {experts}")
    elif experts % groups:
        raise ValueError(
            f"num_experts (N) must be divisible by num_groups (M): {experts} experts do not make {groups} equal "
            f"groups; give a multiple of {groups}, such as {-(-experts // groups) * groups}"
        )
    elif config.router == "deepseek":
        _check_kept_groups(config)
    elif chosen % groups or chosen > experts:
        near = sorted({max(groups, chosen // groups * groups), min(experts, -(-chosen // groups) * groups)})
        valid = " or ".join(str(number) for number in near)
        raise ValueError(
            f"experts_per_token (K) = {chosen} must be a multiple of num_groups (M) = {groups}, as each group gives "
            f"K/M experts, and at most num_experts (N) = {experts}; nearby values: {valid}"
        )
    if config.num_voted_experts is not None:
        _check_votes(config, config.num_voted_experts)


def _check_kept_groups(config: Router.Config) -> None:
    groups, chosen = config.num_groups, config.experts_per_token
    kept = groups if config.kept_groups is None else config.kept_groups
    if kept > groups:
        raise ValueError(f"kept_groups={kept} must not exceed num_groups (M) = {groups}")
    reachable = kept * config.num_experts // groups
    if chosen > reachable:
        raise ValueError(
            f"experts_per_token (K) = {chosen} is more than the {reachable} experts of kept_groups={kept} groups; "
            "keep more groups or choose fewer experts"
        )


def _check_votes(config: Router.Config, votes: int) -> None:
    per_group, per_token = config.num_experts // config.num_groups, config.experts_per_token // config.num_groups
    if config.router != "moge":
        raise ValueError(f"num_voted_experts={votes} is for router='moge', not {config.router!r}: leave it empty")
    if not per_token <= votes <= per_group:
        raise ValueError(
            f"num_voted_experts={votes} must lie between K/M = {per_token}, the experts a token takes from a group, "
            f"and N/M = {per_group}, all experts of a group"
        )
