"""A tiny model of every family of causal LMs that transformers can build from general fields."""

from __future__ import annotations

from typing import Any

SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "lru_width", "word_embed_proj_dim", "emb_dim"), 32),
    **dict.fromkeys(("embedding_size", "attention_hidden_size", "rnn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_size", "expert_ffn_hidden_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "sliding_window"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_chunk_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "encoder_layers"), 1),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "moe_layer_start_index"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_conv": 2,
    "num_memory_tokens": 4,
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LARGEST = 3_000_000
"""Parameters up to which a model counts as tiny."""

NOT_TINY = {
    **dict.fromkeys(
        ("gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4", "mllama", "qwen3_5"),
        "made of a text and other models, whose sizes are in configurations of their own",
    ),
    **dict.fromkeys(
        ("blt", "dots3_note", "emu3", "fuyu", "musicgen", "musicgen_melody", "phi4_multimodal", "qwen3_5_moe"),
        "made of a text and other models, whose sizes are in configurations of their own",
    ),
    **dict.fromkeys(
        ("moss_transcribe_diarize", "gemma4_unified_assistant", "dbrx"),
        "made of a text and other models, whose sizes are in configurations of their own",
    ),
    **dict.fromkeys(
        ("gpt_neo", "zamba", "zamba2", "lfm2_moe", "qwen4_exp", "cohere_compass_text", "gemma3n_text"),
        "the kinds of its layers are listed one by one",
    ),
    **dict.fromkeys(
        ("mamba2", "gemma4_assistant", "zaya", "reformer", "falcon_h1"), "its sizes must satisfy equations of its own"
    ),
    **dict.fromkeys(
        ("inkling2_text", "inkling2_loop_text", "kimi_linear", "roc_bert", "deepseek_v4"),
        "some of its sizes have names of their own",
    ),
}
"""Families that these general sizes do not make tiny, each with its reason."""

NO_FORWARD = {
    "bailing_hybrid": "these sizes leave its linear attention no channels",
    "longcat_flash": "these sizes do not fit its attention",
    "xmod": "it needs a language",
}
"""Families whose tiny model cannot read token ids alone; their tensors are compared, not their logits."""


HALF_READ = (
    "bitnet",
    "falcon",
    "gpt_neox_japanese",
    "modernbert-decoder",
    "olmoe",
    "persimmon",
    "stablelm",
)
"""Families whose code reads ``head_dim`` in one place and computes it in another."""


def tiny_fields(model_type: str, known: set[str], read: frozenset[str]) -> dict[str, Any]:
    """Return the fields for a tiny model of a family.

    Args:
        model_type: transformers' name.
        known: fields that its configuration declares.
        read: fields that its code reads; ``head_dim`` is set to another number than hidden size / heads, where it is
            read and not declared.
    """
    fields = {name: size for name, size in SIZES.items() if name in known}
    if "qk_rope_head_dim" in known:  # multi-head latent attention has a key for each query
        return fields | {"num_key_value_heads": 4} if "num_key_value_heads" in known else fields
    if "head_dim" in known:
        return fields | {"head_dim": 8}
    return fields | {"head_dim": 16} if "head_dim" in read and model_type not in HALF_READ else fields


def families() -> list[str]:
    """Return the families that these sizes make tiny and that read token ids alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    return sorted(known - set(NOT_TINY) - set(NO_FORWARD))


def tiny_float64(model_type: str) -> Any:
    """Return a tiny random model in float64, whose texts matter more to its logits than in a fresh one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pangu_modules.llm.models.fields import fields_read

    known = set(AutoConfig.for_model(model_type).to_dict())
    config = AutoConfig.for_model(model_type, **tiny_fields(model_type, known, fields_read(model_type)))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().double()
    model.set_experts_implementation("eager")  # the grouped product has no float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model
