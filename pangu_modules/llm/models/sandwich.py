"""Depth-scaled sandwich norm (Pangu Ultra, arXiv:2504.07866): a Llama with a norm behind every block, too.

    x <- x + RMSNorm_post,a( Attention( RMSNorm_pre,a(x) ) )
    x <- x + RMSNorm_post,m( FFN( RMSNorm_pre,m(x) ) )

Post-norm gains start at ``c_attn / sqrt(L)`` and ``c_mlp / sqrt(L)`` with L layers. All other modules have Llama's
names (`post_attention_layernorm` is Llama's name of the norm before the FFN), so the surgery for Llama works here, and
what is left after `absorb_post_norms` is a Llama. Importing this module registers it with transformers' Auto classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm

from pangu_modules.llm.models.decoder import SUPPORTED_MODEL_TYPES


class SandwichLlamaConfig(LlamaConfig):
    """Llama's configuration with the starting gains of the post-norms.

    Args:
        post_norm_attention_scale: c_attn; attention post-norm gains start at c_attn / sqrt(num_hidden_layers).
        post_norm_mlp_scale: c_mlp, the same for the FFN.
        embedding_initializer_range: standard deviation of the initial embedding; None takes ``initializer_range``. A
            small model trained from scratch learns much faster where it is near the post-norm gains (untied heads
            only): at Llama's 0.02 the first blocks' normalised outputs drown the tokens in the residual stream.
    """

    model_type = "sandwich_llama"

    post_norm_attention_scale: float = 1.0
    post_norm_mlp_scale: float = 1.0
    embedding_initializer_range: float | None = None


class PostRMSNorm(LlamaRMSNorm):
    """An RMSNorm behind a block, whose gains all start at `initial_gain`."""

    def __init__(self, config: SandwichLlamaConfig, initial_gain: float) -> None:
        super().__init__(config.hidden_size, eps=config.rms_norm_eps)
        self.initial_gain = initial_gain


class SandwichDecoderLayer(LlamaDecoderLayer):
    """A Llama layer whose attention and FFN outputs are normalised before they join the residual stream."""

    def __init__(self, config: SandwichLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        depth = math.sqrt(config.num_hidden_layers)
        self.post_self_attn_layernorm = PostRMSNorm(config, config.post_norm_attention_scale / depth)
        self.post_mlp_layernorm = PostRMSNorm(config, config.post_norm_mlp_scale / depth)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map the residual stream (batch, seq, hidden) to the same shape; `kwargs` are the attention's."""
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.post_self_attn_layernorm(attention)
        ffn = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.post_mlp_layernorm(ffn)


class SandwichLlamaModel(LlamaModel):
    """The decoder without its language-model head."""

    config: SandwichLlamaConfig
    _no_split_modules = ["SandwichDecoderLayer"]
    _can_record_outputs = {"hidden_states": SandwichDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config: SandwichLlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([SandwichDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_for_sandwich(module, self.config)


class SandwichLlamaForCausalLM(LlamaForCausalLM):
    """The sandwich-norm decoder with a language-model head: generates, saves and loads like any transformers model."""

    config: SandwichLlamaConfig
    config_class = SandwichLlamaConfig
    _no_split_modules = ["SandwichDecoderLayer"]

    def __init__(self, config: SandwichLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # past Llama's own constructor, which builds a Llama decoder
        self.model = SandwichLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_for_sandwich(module, self.config)


def _init_for_sandwich(module: nn.Module, config: SandwichLlamaConfig) -> None:
    # Like transformers' functions, leave alone what came from a checkpoint.
    if isinstance(module, PostRMSNorm):
        init.constant_(module.weight, module.initial_gain)
    wanted = config.embedding_initializer_range
    fresh = not getattr(getattr(module, "weight", None), "_is_hf_initialized", False)
    if isinstance(module, nn.Embedding) and fresh and wanted is not None:
        with torch.no_grad():
            module.weight *= wanted / config.initializer_range


SUPPORTED_MODEL_TYPES.add(SandwichLlamaConfig.model_type)
AutoConfig.register(SandwichLlamaConfig.model_type, SandwichLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(SandwichLlamaConfig, SandwichLlamaForCausalLM, exist_ok=True)
