"""A tiny mixture of grouped experts as a CausalLM, and a Trainer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch

from pangu_modules.llm.causal_lm import CausalLM

TINY_MOGE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_groups": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "pad_token_id": None,
}


def moge_module(seed: int = 0, model_args: dict[str, Any] | None = None, **fields: Any) -> CausalLM:
    torch.manual_seed(seed)
    config = CausalLM.Config(architecture="PanguProMoE", model_args={**TINY_MOGE, **(model_args or {})}, **fields)
    module: CausalLM = config.build()
    return module


def short_trainer(folder: Path, *callbacks: Any, **fields: Any) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 2, "limit_val_batches": 0, **fields},
    )
