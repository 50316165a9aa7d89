"""What a device of a layout holds during a step: weights, key/value cache and activations, in bytes."""

from __future__ import annotations

import math

from pangu_modules.simulator.layout import Layout, Workload
from pangu_modules.simulator.model_shape import ModelShape
from pangu_modules.simulator.roofline import ACTIVATION_BYTES, Step, load_imbalance


def memory_bytes(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> dict[str, float]:
    """Return the bytes a device holds: weights, key/value cache (sequences at full length), activations of a layer."""
    tp = layout.attention_tp
    kv_heads = max(1, shape.num_kv_heads // tp)
    attention = shape.hidden_size * shape.head_dim * 2 * (shape.num_heads // tp + kv_heads)
    sparse, dense = shape.sparse_layers, shape.num_layers - shape.sparse_layers
    mlps = sparse * shape.num_experts * shape.expert_parameters / layout.devices
    mlps += (sparse * shape.shared_parameters + dense * shape.dense_parameters) / layout.shared_tp
    in_16_bit = shape.embedding_parameters / tp + sparse * shape.num_experts * shape.hidden_size
    length = workload.prompt_tokens + (workload.output_tokens if step.new_tokens == 1 else 0)
    sequences = math.ceil(step.sequences / layout.attention_dp)
    cache = sequences * length * 2 * shape.num_layers * kv_heads * shape.head_dim * workload.kv_bits / 8
    return {
        "weights": (shape.num_layers * attention + mlps) * workload.weight_bytes + 2 * in_16_bit,
        "cache": cache,
        "activations": _activation_bytes(shape, layout, workload, step),
    }


def _activation_bytes(shape: ModelShape, layout: Layout, workload: Workload, step: Step) -> float:
    """Return the bytes of the largest tensors alive at once in a layer: residual, MLP input, expert rows, output."""
    gathered = step.tokens if shape.sparse_layers else math.ceil(step.tokens * layout.shared_tp / layout.devices)
    elements = 3.0 * gathered * shape.hidden_size
    if shape.sparse_layers:
        rows = (
            load_imbalance(shape, layout, workload, step) * step.tokens * shape.num_experts_per_tok / layout.expert_ep
        )
        elements += rows * (2 * shape.hidden_size + 3 * shape.moe_intermediate_size / layout.expert_tp)
    else:
        elements += 3 * gathered * shape.intermediate_size / layout.shared_tp
    return elements * ACTIVATION_BYTES
