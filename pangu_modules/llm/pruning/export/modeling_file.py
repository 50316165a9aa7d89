"""The modelling file that comes with a model exported in the ``per_layer`` layout."""

from __future__ import annotations

from string import Template
from typing import Any

MODELING_FILE = "modeling_pruned.py"

_TEMPLATE = Template('''"""A $family decoder whose layers differ in size after structured pruning.

It needs transformers alone. Open it with ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``.
"""

from torch import nn
from transformers import ${family}Config, ${family}ForCausalLM


class PrunedConfig(${family}Config):
    """``layer_shapes`` lists every layer's sizes; the usual fields hold the largest ones."""

    model_type = "pruned_$model_type"

    def validate_architecture(self):
        """Accept any number of heads: head_dim is given."""


class PrunedForCausalLM(${family}ForCausalLM):
    """Builds each layer from its own entry of ``config.layer_shapes``."""

    config_class = PrunedConfig
    config: PrunedConfig

    def __init__(self, config):
        super().__init__(config)
        for layer, shape in zip(self.model.layers, config.layer_shapes, strict=True):
            resize(layer, shape)


def resize(layer, shape):
    """Replace the projections of one layer by ones of its own sizes."""
    attention, mlp = layer.self_attn, layer.mlp
    heads, kv_heads = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"]
    channels = shape["intermediate_size"]
    hidden = attention.q_proj.in_features
    attention.num_key_value_groups = shape["num_heads"] // shape["num_kv_heads"]
    attention.q_proj = nn.Linear(hidden, heads, bias=attention.q_proj.bias is not None)
    attention.k_proj = nn.Linear(hidden, kv_heads, bias=attention.k_proj.bias is not None)
    attention.v_proj = nn.Linear(hidden, kv_heads, bias=attention.v_proj.bias is not None)
    attention.o_proj = nn.Linear(heads, hidden, bias=shape["attention_output_bias"])
    mlp.gate_proj = nn.Linear(hidden, channels, bias=mlp.gate_proj.bias is not None)
    mlp.up_proj = nn.Linear(hidden, channels, bias=mlp.up_proj.bias is not None)
    mlp.down_proj = nn.Linear(channels, hidden, bias=shape["mlp_output_bias"])
''')


def modeling_source(model: Any) -> str:
    """Return the text of the modelling file for a model of a supported architecture."""
    family = type(model).__name__.removesuffix("ForCausalLM")
    return _TEMPLATE.substitute(family=family, model_type=model.config.model_type)
