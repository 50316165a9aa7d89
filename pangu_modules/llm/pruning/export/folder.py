"""Writing pruned models as folders that transformers opens without this library.

- ``uniform``: all layers have the same sizes; a plain architecture that can express them.
- ``padded``: layers are filled with zero rows and columns up to the largest one; loads anywhere, computes the same,
  and saves nothing for the padded layers.
- ``per_layer``: every layer keeps its own sizes; the folder brings a small modelling file (``trust_remote_code``).
- ``auto``: uniform where it is possible, otherwise per_layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pangu_modules.llm.export.transformers import refuse_own_architecture
from pangu_modules.llm.models import decoder
from pangu_modules.llm.models.messages import quiet_transformers
from pangu_modules.llm.pruning.export.carriers import PLAIN_ARCHITECTURES, carrier_config
from pangu_modules.llm.pruning.export.modeling_file import MODELING_FILE, modeling_source
from pangu_modules.llm.pruning.export.padding import pad_layer

Layout = Literal["auto", "uniform", "padded", "per_layer"]


def write_pruned(model: Any, folder: Path, layout: Layout = "auto") -> Layout:
    """Write weights, ``config.json`` and ``generation_config.json`` of a pruned model; the model is not changed.

    Args:
        model: a pruned transformers model of a supported architecture.
        folder: existing folder to write to.
        layout: see the module's docstring.

    Returns:
        The layout written.

    Raises:
        ValueError: the layout cannot express the model (the message names the ones that can).
    """
    refuse_own_architecture(model.config.model_type)
    if model.config.model_type not in PLAIN_ARCHITECTURES:
        known = ", ".join(PLAIN_ARCHITECTURES)
        raise ValueError(f"export: a pruned {model.config.model_type!r} cannot be written, only {known}")
    uniform = len({decoder.layer_shape(layer) for layer in decoder.decoder_layers(model)}) == 1
    if layout == "auto":
        layout = "uniform" if uniform and _carrier_exists(model) else "per_layer"
    if layout == "uniform" and not uniform:
        raise ValueError(
            "layout 'uniform' needs layers of equal sizes: prune with alpha=0 and all layers in pruned_layers, or "
            "export with layout 'padded' or 'per_layer'"
        )
    with quiet_transformers():
        if layout == "per_layer":
            _write_per_layer(model, folder)
        else:
            _write_uniform(model, folder)
    return layout


def _carrier_exists(model: Any) -> bool:
    try:
        carrier_config(model)
    except ValueError:
        return False
    return True


def _write_uniform(model: Any, folder: Path) -> None:
    """Load the (padded) weights into the architecture that can express them and save that."""
    from transformers import AutoModelForCausalLM

    config = carrier_config(model)
    with torch.device("meta"):
        carrier = AutoModelForCausalLM.from_config(config)
    weights = dict(model.state_dict())
    target = decoder.LayerShape(
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.intermediate_size
    )
    for index, layer in enumerate(decoder.decoder_layers(model)):
        padded = pad_layer(layer, target)
        weights |= {f"model.layers.{index}.{name}": tensor for name, tensor in padded.items()}
    like = model.get_input_embeddings().weight
    for name, tensor in carrier.state_dict().items():
        if name not in weights and name.endswith(".bias"):  # a bias the carrier has and the model lacks
            weights[name] = torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
    carrier.load_state_dict(weights, assign=True)
    carrier.tie_weights()
    carrier.generation_config = model.generation_config
    carrier.save_pretrained(folder)


def _write_per_layer(model: nn.Module, folder: Path) -> None:
    """Save the model as it is, with a modelling file that builds each layer from its own sizes."""
    saver: Any = model
    saver.save_pretrained(folder)
    config = decoder.backbone(model).config
    data = json.loads((folder / "config.json").read_text())
    module = MODELING_FILE.removesuffix(".py")
    data |= {
        "model_type": f"pruned_{config.model_type}",
        "architectures": ["PrunedForCausalLM"],
        "auto_map": {"AutoConfig": f"{module}.PrunedConfig", "AutoModelForCausalLM": f"{module}.PrunedForCausalLM"},
        "layer_shapes": decoder.layer_records(model),
    }
    (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n")
    (folder / MODELING_FILE).write_text(modeling_source(model))
