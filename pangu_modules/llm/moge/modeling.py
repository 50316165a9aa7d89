"""Pangu Pro MoE as a transformers model: Llama's attention with biases, and a mixture of grouped experts per layer.

Tensors have the released checkpoint's names and shapes (arXiv:2505.21411; the experts are stacked in memory, see
`checkpoint`). Importing this module registers the model with transformers' Auto classes, and the experts' fast path
as ``experts_implementation="moge"``, the default.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from pangu_modules.llm.moge.block import MoGEBlock
from pangu_modules.llm.moge.checkpoint import IGNORED_TENSORS, check_router_scale, register_conversion
from pangu_modules.llm.moge.configuration import PanguProMoEConfig
from pangu_modules.llm.moge.experts import GroupedExperts, experts_forward, reference_experts
from pangu_modules.llm.moge.router import Router

DEFAULT_EXPERTS = "moge"


@use_experts_implementation
class PanguProMoEExperts(GroupedExperts):
    """The routed experts, computed by the model's ``experts_implementation``; "eager" is the reference loop."""

    def __init__(self, config: PanguProMoEConfig) -> None:
        super().__init__(
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            num_experts=config.num_experts,
            num_groups=config.num_groups if config.router == "moge" else 1,
        )

    def forward(self, hidden_states: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the gated sum of the selected experts, (T, h); ids and weights are (T, K)."""
        return reference_experts(hidden_states, expert_ids, weights, self.gate_up_proj, self.down_proj)


def moge_experts_forward(
    self: GroupedExperts, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Compute experts with `experts_forward`, in the form of transformers' experts interface."""
    return experts_forward(
        hidden_states,
        top_k_index,
        top_k_weights,
        self.gate_up_proj,
        self.down_proj,
        num_groups=getattr(self, "num_groups", 1),
    )


class PanguProMoEDecoderLayer(GradientCheckpointingLayer):
    """Attention and mixture, each behind a pre-norm; the released first version has no norm behind them."""

    def __init__(self, config: PanguProMoEConfig, layer_idx: int) -> None:
        super().__init__()
        attention_config: Any = config  # has all fields of a LlamaConfig that attention reads
        self.self_attn = LlamaAttention(attention_config, layer_idx)
        self.mlp = MoGEBlock(config.block_config(), layer_idx=layer_idx, experts=PanguProMoEExperts(config))
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map the residual stream (batch, seq, hidden) to the same shape; `kwargs` are the attention's."""
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PanguProMoEModel(LlamaModel):
    """The decoder without its language-model head."""

    config: PanguProMoEConfig  # type: ignore[assignment]
    config_class = PanguProMoEConfig
    _no_split_modules = ["PanguProMoEDecoderLayer"]
    _can_record_outputs = {"hidden_states": PanguProMoEDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config: PanguProMoEConfig) -> None:
        super(LlamaModel, self).__init__(config)  # past Llama's own constructor, which builds a Llama decoder
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [PanguProMoEDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rotary_config: Any = config
        self.rotary_emb = LlamaRotaryEmbedding(config=rotary_config)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers remembers the answer on the class, and a Llama that was asked before has answered no for us too.
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Return the implementation to use: ours where none is requested."""
        return super().get_correct_experts_implementation(requested_experts or DEFAULT_EXPERTS)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_mixture(module, self.config.initializer_range)


class PanguProMoEForCausalLM(LlamaForCausalLM):
    """Pangu Pro MoE with a language-model head: generates, saves and loads like any transformers model.

    ``from_pretrained`` reads the released layout and ``save_pretrained`` writes it, bit by bit.
    """

    config: PanguProMoEConfig  # type: ignore[assignment]
    config_class = PanguProMoEConfig
    _no_split_modules = ["PanguProMoEDecoderLayer"]
    _keys_to_ignore_on_load_unexpected = list(IGNORED_TENSORS)

    def __init__(self, config: PanguProMoEConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # past Llama's own constructor, which builds a Llama decoder
        self.model = PanguProMoEModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does.

        Raises:
            ValueError: the configuration is of Pro MoE V2, or the checkpoint lacks the gate factors
                (``router_scale``) that the configuration asks for; not where ``output_loading_info`` returns the names.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if output_loading_info:  # who asks for the names checks them, and may load again
            return model, info
        model.check_loaded_names(set(info["missing_keys"]), set(info["unexpected_keys"]))
        return model

    def check_loaded_names(self, missing: set[str], unexpected: set[str]) -> None:
        """Refuse a checkpoint without the gate factors that the configuration asks for; see `check_router_scale`."""
        check_router_scale(missing, unexpected)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers remembers the answer on the class, and a Llama that was asked before has answered no for us too.
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Return the implementation to use: ours where none is requested."""
        return super().get_correct_experts_implementation(requested_experts or DEFAULT_EXPERTS)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_mixture(module, self.config.initializer_range)


def _init_mixture(module: nn.Module, std: float) -> None:
    # transformers' functions leave alone what came from a checkpoint.
    if isinstance(module, GroupedExperts):
        init.normal_(module.gate_up_proj, mean=0.0, std=std)
        init.normal_(module.down_proj, mean=0.0, std=std)
    elif isinstance(module, Router):
        init.normal_(module.weight, mean=0.0, std=std)
        if module.e_score_correction_bias is not None:
            init.zeros_(module.e_score_correction_bias)
    elif isinstance(module, MoGEBlock) and isinstance(module.router_scale, nn.Parameter):
        init.ones_(module.router_scale)


ALL_EXPERTS_FUNCTIONS.register(DEFAULT_EXPERTS, moge_experts_forward)
register_conversion(PanguProMoEConfig.model_type)
AutoConfig.register(PanguProMoEConfig.model_type, PanguProMoEConfig, exist_ok=True)
AutoModelForCausalLM.register(PanguProMoEConfig, PanguProMoEForCausalLM, exist_ok=True)
