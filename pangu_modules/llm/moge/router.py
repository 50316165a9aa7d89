"""Router: the linear layer that chooses experts; MoGE, plain top-k, or DeepSeek's group-limited choice."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pangu_modules.common.config import Config as BaseConfig
from pangu_modules.common.config import Configurable
from pangu_modules.llm.moge.routing import Routing, route_deepseek, route_moge, route_topk

ROUTER_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class Router(Configurable, nn.Module):
    """Linear router: logits ``x W^T`` without bias, then the selection that `config.router` names.

    ``weight`` (N, h) is the only parameter. The ``deepseek`` router also has a buffer ``e_score_correction_bias`` (N,).

    Args:
        config: the router's fields; those of a whole block will do.
        layer_idx: named in messages.
    """

    class Config(BaseConfig):
        """Sizes of the mixture and how tokens choose their experts."""

        renamed = {"experts_per_token": "num_experts_per_tok"}

        hidden_size: PositiveInt = Field(5120, description="Width of a token (h).")
        num_experts: PositiveInt = Field(64, description="Routed experts (N).")
        num_groups: PositiveInt = Field(8, description="Groups of consecutive experts (M), one or more per device.")
        num_experts_per_tok: PositiveInt = Field(
            8, description="Experts each token is sent to (K); MoGE: K/M per group."
        )
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
                config.num_experts_per_tok,
                kept_groups=config.kept_groups,
                bias=self.e_score_correction_bias,
            )
        elif config.router == "topk":
            routing = route_topk(logits, config.num_experts_per_tok)
        else:
            routing = route_moge(logits, config.num_groups, config.num_experts_per_tok, self._votes())
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
            f"{config.router}, experts={config.num_experts}, groups={config.num_groups}, k={config.num_experts_per_tok}"
        )


def check_selection(config: Router.Config) -> None:
    """Refuse sizes that leave some token without its K experts.

    Raises:
        ValueError: names the fields, their values and what would be valid.
    """
    experts, groups, chosen = config.num_experts, config.num_groups, config.num_experts_per_tok
    if config.router == "topk":
        if chosen > experts:
            raise ValueError(f"num_experts_per_tok (K) = {chosen} must not exceed num_experts (N) = {experts}")
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
            f"num_experts_per_tok (K) = {chosen} must be a multiple of num_groups (M) = {groups}, as each group gives "
            f"K/M experts, and at most num_experts (N) = {experts}; nearby values: {valid}"
        )
    if config.num_voted_experts is not None:
        _check_votes(config, config.num_voted_experts)


def _check_kept_groups(config: Router.Config) -> None:
    groups, chosen = config.num_groups, config.num_experts_per_tok
    kept = groups if config.kept_groups is None else config.kept_groups
    if kept > groups:
        raise ValueError(f"kept_groups={kept} must not exceed num_groups (M) = {groups}")
    reachable = kept * config.num_experts // groups
    if chosen > reachable:
        raise ValueError(
            f"num_experts_per_tok (K) = {chosen} is more than the {reachable} experts of kept_groups={kept} groups; "
            "keep more groups or choose fewer experts"
        )


def _check_votes(config: Router.Config, votes: int) -> None:
    per_group, per_token = config.num_experts // config.num_groups, config.num_experts_per_tok // config.num_groups
    if config.router != "moge":
        raise ValueError(f"num_voted_experts={votes} is for router='moge', not {config.router!r}: leave it empty")
    if not per_token <= votes <= per_group:
        raise ValueError(
            f"num_voted_experts={votes} must lie between K/M = {per_token}, the experts a token takes from a group, "
            f"and N/M = {per_group}, all experts of a group"
        )
