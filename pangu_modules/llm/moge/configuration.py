"""Configuration of Pangu Pro MoE in transformers' form, with the released checkpoint's field names and values."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from pangu_modules.llm.moge.block import MoGEBlock

# Fields only "Pro MoE V2" (openPangu-R-72B-2512) has: another model under the same class name.
V2_FIELDS = (
    "qk_nope_dim",
    "qk_rope_dim",
    "v_channels",
    "param_sink_number",
    "param_sink_with_value",
    "router_enable_expert_bias",
    "routed_scaling_factor",
    "sandwich_norm",
    "num_mtp_layers",
)


class PanguProMoEConfig(PreTrainedConfig):
    """Pangu Pro MoE (arXiv:2505.21411); the defaults are the released 72B model's.

    Args:
        vocab_size: tokens.
        hidden_size: width h of the residual stream.
        num_hidden_layers: decoder layers, all of them with a mixture.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides the query heads.
        head_dim: width of a head; None for hidden_size / num_attention_heads.
        attention_bias: biases of q, k, v and o.
        num_experts: routed experts N.
        num_groups: groups M of consecutive experts. The released configuration does not name it: it has as many
            groups as experts per token.
        num_experts_per_tok: experts per token K, K/M of each group.
        moe_intermediate_size: inner width I of a routed expert.
        shared_expert_intermediate_size: inner width of the shared expert; 0 for none.
        router: ``"moge"``, or the baselines ``"topk"`` and ``"deepseek"``; see `Router`.
        router_scale: whether each expert's gate has a learned factor, as in the released checkpoint.
        router_aux_loss_coef: the paper's alpha, the weight of the auxiliary loss.

    The other fields are transformers' usual ones, or described at `Router.Config`.

    Raises:
        ValueError: a configuration of Pro MoE V2, or sizes that do not fit each other.
    """

    model_type = "PanguProMoE"
    default_theta = 16_000_000.0  # base of the rotary embedding where neither rope_theta nor rope_parameters is given
    attribute_map = {"num_local_experts": "num_experts"}
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 153_376
    hidden_size: int = 5120
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int | None = None
    attention_bias: bool = True
    attention_dropout: float = 0.0
    hidden_act: str = "silu"
    max_position_embeddings: int = 131_072
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 45_892

    num_experts: int = 64
    num_groups: int = 8
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 1344
    shared_expert_intermediate_size: int = 5376
    router: str = "moge"
    router_scale: bool = True
    norm_topk_prob: bool = False
    router_dtype: str = "float32"
    router_jitter: float = 0.0
    num_voted_experts: int | None = None
    kept_groups: int | None = None
    gate_scaling_factor: float = 1.0
    bias_update_speed: float = 0.001
    check_router_logits: bool = True
    router_aux_loss_coef: float = 0.001

    def __post_init__(self, **kwargs: Any) -> None:
        found = [name for name in V2_FIELDS if name in kwargs]
        if found:
            raise ValueError(
                f"this is a configuration of Pangu Pro MoE V2 (it has {', '.join(found)}), a different model under the "
                "same name: sigmoid scores, other attention, no groups. PanguProMoEForCausalLM is the first version; "
                "load V2 with the code that comes with it"
            )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={self.hidden_act!r}: the experts of Pangu Pro MoE are SwiGLU, give 'silu'")
        self.block_config()  # refuses what does not fit
        super().__post_init__(**kwargs)

    def block_config(self) -> MoGEBlock.Config:
        """Return the configuration of one layer's mixture.

        Raises:
            ValueError: sizes do not fit each other; the message names the fields as `MoGEBlock.Config` does.
        """
        return MoGEBlock.Config(
            hidden_size=self.hidden_size,
            num_experts=self.num_experts,
            num_groups=self.num_groups,
            num_experts_per_tok=self.num_experts_per_tok,
            router=self.router,
            norm_topk_prob=self.norm_topk_prob,
            router_dtype=self.router_dtype,
            router_jitter=self.router_jitter,
            num_voted_experts=self.num_voted_experts,
            kept_groups=self.kept_groups,
            gate_scaling_factor=self.gate_scaling_factor,
            bias_update_speed=self.bias_update_speed,
            check_logits=self.check_router_logits,
            moe_intermediate_size=self.moe_intermediate_size,
            shared_expert_intermediate_size=self.shared_expert_intermediate_size,
            router_scale=self.router_scale,
        )
