"""A random checkpoint in the released layout of Pangu Pro MoE, and a mixture as a loop over its experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

LAYERS, HIDDEN, KV, EXPERTS, GROUPS, WIDTH, SHARED, VOCABULARY = 2, 32, 16, 8, 4, 16, 24, 64
CONFIG: dict[str, Any] = {
    "model_type": "PanguProMoE",
    "architectures": ["PanguProMoEForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": EXPERTS,
    "num_groups": GROUPS,
    "num_experts_per_tok": GROUPS,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": SHARED,
    "max_position_embeddings": 128,
    "rope_theta": 16_000_000.0,
    "eos_token_id": 3,
}


def write_released(folder: Path, seed: int) -> dict[str, Tensor]:
    """Write a random model of two layers in float32, one tensor per expert and projection, and return its tensors."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in released_shapes().items()}
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return state


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (HIDDEN,)
        for name, rows in {"q_proj": HIDDEN, "k_proj": KV, "v_proj": KV, "o_proj": HIDDEN}.items():
            shapes[f"{prefix}.self_attn.{name}.weight"] = (rows, HIDDEN)
            shapes[f"{prefix}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{prefix}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        shapes[f"{prefix}.mlp.router_scale"] = (1, EXPERTS)
        mlps = {f"experts.{expert}": WIDTH for expert in range(EXPERTS)} | {"shared_expert": SHARED}
        for name, width in mlps.items():
            shapes[f"{prefix}.mlp.{name}.gate_proj.weight"] = (width, HIDDEN)
            shapes[f"{prefix}.mlp.{name}.up_proj.weight"] = (width, HIDDEN)
            shapes[f"{prefix}.mlp.{name}.down_proj.weight"] = (HIDDEN, width)
    return shapes


class LoopMixture(nn.Module):
    """The block by its formulas: token by token and group by group, one expert at a time.

    Args:
        state: released tensors.
        prefix: of the block's names.
    """

    def __init__(self, state: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.state, self.prefix = state, prefix

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the output for (batch, seq, h)."""
        tokens = [self._token(token) for token in hidden_states.flatten(0, -2)]
        return torch.stack(tokens).view(hidden_states.shape)

    def _token(self, token: Tensor) -> Tensor:
        scores = (self._tensor("gate.weight") @ token).softmax(0)
        output, size = self._mlp("shared_expert", token), EXPERTS // GROUPS
        for group in range(GROUPS):
            expert = group * size + int(scores[group * size : (group + 1) * size].argmax())
            gate = scores[expert] * self._tensor("router_scale")[0, expert]
            output = output + gate * self._mlp(f"experts.{expert}", token)
        return output

    def _mlp(self, name: str, token: Tensor) -> Tensor:
        gate, up, down = (self._tensor(f"{name}.{kind}_proj.weight") for kind in ("gate", "up", "down"))
        return down @ (F.silu(gate @ token) * (up @ token))

    def _tensor(self, name: str) -> Tensor:
        return self.state[f"{self.prefix}.{name}"]
