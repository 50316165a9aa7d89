"""Operators that torch_npu fuses, each with its meaning in stock torch, which runs everywhere else.

An operator is called like a function: ``rms_norm(x, weight, 1e-6)``. On an NPU it is torch_npu's fused operator, where
that takes the call, and `explain` says why where it does not. `fuse` lets a whole model use them.
"""

from pangu_modules.ascend.ops import activations, attention, grouped, int8, losses, norms, permutation, rotary, routing
from pangu_modules.ascend.ops import tokens as token_rows
from pangu_modules.ascend.ops.dispatch import Explanation, FusedOps, fused_ops, recorded, set_fused_ops
from pangu_modules.ascend.ops.operator import Operator
from pangu_modules.ascend.ops.routing import route_in_groups
from pangu_modules.ascend.ops.table import OPERATORS, explain

rms_norm = norms.RMS_NORM
add_rms_norm = norms.ADD_RMS_NORM
gemma_rms_norm = norms.GEMMA_RMS_NORM
rotary_mul = rotary.ROTARY_MUL
apply_rotary_pos_emb_ = rotary.APPLY_ROTARY_POS_EMB_
swiglu = activations.SWIGLU
gated_silu = activations.GATED_SILU
geglu = activations.GEGLU
fusion_attention = attention.ATTENTION
infer_attention = attention.INFER_ATTENTION
cross_entropy = losses.CROSS_ENTROPY
grouped_matmul = grouped.GROUPED_MATMUL
grouped_outer = grouped.GROUPED_OUTER
gating_top_k_softmax = routing.GATING_TOP_K_SOFTMAX
gating_top_k_renormalized = routing.GATING_TOP_K_RENORMALIZED
gating_top_k = routing.GATING_TOP_K
init_routing = permutation.INIT_ROUTING
init_routing_v2 = permutation.INIT_ROUTING_V2
compute_expert_tokens = permutation.COMPUTE_EXPERT_TOKENS
finalize_routing = permutation.FINALIZE_ROUTING
token_permute = token_rows.TOKEN_PERMUTE
token_unpermute = token_rows.TOKEN_UNPERMUTE
token_permute_with_map = token_rows.TOKEN_PERMUTE_WITH_MAP
token_unpermute_with_map = token_rows.TOKEN_UNPERMUTE_WITH_MAP
quant_matmul = int8.QUANT_MATMUL
dynamic_quant = int8.DYNAMIC_QUANT
quantize = int8.QUANTIZE
weight_quant_matmul = int8.WEIGHT_QUANT_MATMUL
dequant_swiglu_quant = int8.DEQUANT_SWIGLU_QUANT

__all__ = [
    "OPERATORS",
    "Explanation",
    "FusedOps",
    "Operator",
    "explain",
    "fused_ops",
    "recorded",
    "route_in_groups",
    "set_fused_ops",
    *OPERATORS,
]
