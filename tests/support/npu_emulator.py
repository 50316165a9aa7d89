"""torch_npu's functions as its documents describe them: slow, written apart from the references, on the CPU.

Each checks types and values that the documents demand and the schemas do not say, and raises where they are not kept.
`NpuEmulator` stands in for the module: it checks a call against the stored signatures first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pangu_modules.ascend.ops.schemas import misfit

FUNCTIONS = {}


class ContractError(AssertionError):
    """A call that the real operator would refuse, or take for something else."""


def demand(condition, message):
    if not condition:
        raise ContractError(message)


def documented(function):
    FUNCTIONS[function.__name__] = function
    return function


class NpuEmulator:
    """In place of the module torch_npu; `calls` counts the calls of each function."""

    __version__ = "2.14.0"

    def __init__(self):
        self.calls = {}

    def __getattr__(self, symbol):
        if symbol not in FUNCTIONS:
            raise AttributeError(symbol)

        def call(*args, **kwargs):
            reason = misfit(symbol, args, kwargs)
            demand(reason is None, reason)
            self.calls[symbol] = self.calls.get(symbol, 0) + 1
            return FUNCTIONS[symbol](*args, **kwargs)

        return call


@documented
def npu_rms_norm(input, gamma, epsilon=1e-6):
    demand(input.dtype == gamma.dtype, "gamma has another type")
    x = input.double()
    scale = 1 / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + epsilon)
    return (x * scale * gamma.double()).to(input.dtype), scale.to(torch.float32)


@documented
def npu_add_rms_norm(x1, x2, gamma, epsilon=1e-6):
    total = x1 + x2
    y, rstd = npu_rms_norm(total, gamma, epsilon)
    return y, rstd, total


@documented
def npu_gemma_rms_norm(input, gamma, epsilon=1e-6):
    y, rstd = npu_rms_norm(input.double(), 1 + gamma.double(), epsilon)
    return y.to(input.dtype), rstd


@documented
def npu_rotary_mul(input, r1, r2, rotary_mode="half", rotate=None):
    demand(input.ndim == 4 and rotary_mode in ("half", "interleave"), "layout or mode")
    x, cos, sin = input.double(), r1.double().expand_as(input), r2.double().expand_as(input)
    result, width = torch.empty_like(x), x.shape[-1]
    for d in range(width):  # each entry turns with its partner
        if rotary_mode == "half":
            partner = -x[..., d + width // 2] if d < width // 2 else x[..., d - width // 2]
        else:
            partner = -x[..., d + 1] if d % 2 == 0 else x[..., d - 1]
        result[..., d] = x[..., d] * cos[..., d] + partner * sin[..., d]
    return result.to(input.dtype)


@documented
def npu_apply_rotary_pos_emb(query, key, cos, sin, layout="BSND", rotary_mode="half"):
    demand(layout == "BSND" and rotary_mode == "half", "A2 takes BSND and halves")
    demand(cos.shape == (*query.shape[:2], 1, query.shape[3]), "cos is (B, S, 1, D)")
    query.copy_(npu_rotary_mul(query.clone(), cos, sin))
    key.copy_(npu_rotary_mul(key.clone(), cos, sin))
    return query, key


def silu(x):
    return x / (1 + torch.exp(-x))


@documented
def npu_swiglu(input, dim=-1):
    half = input.shape[dim] // 2
    gate, up = input.double().narrow(dim, 0, half), input.double().narrow(dim, half, half)
    return (silu(gate) * up).to(input.dtype)


@documented
def npu_geglu(input, dim=-1, approximate=1, activate_left=False):
    demand(approximate == 1, "only the tanh formula is emulated")
    half = input.shape[dim] // 2
    left, right = input.double().narrow(dim, 0, half), input.double().narrow(dim, half, half)
    x, other = (left, right) if activate_left else (right, left)
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return (gelu * other).to(input.dtype), gelu.to(input.dtype)


def attended(query, key, value, scale, hidden, inner_precise=0):
    """Softmax attention in float64, head by head; `hidden(batch, head, i, j)` says what a query does not see."""
    batch, heads, queries, _ = query.shape
    share = heads // key.shape[1]
    out = torch.zeros(batch, heads, queries, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for n in range(heads):
            k, v = key[b, n // share].double(), value[b, n // share].double()
            for i in range(queries):
                seen = [j for j in range(len(k)) if not hidden(b, n, i, j)]
                if not seen:
                    demand(inner_precise == 2, "a query without keys gets anything, unless inner_precise is 2")
                    continue
                scores = torch.stack([scale * (query[b, n, i].double() @ k[j]) for j in seen])
                weights = torch.exp(scores - scores.max())
                out[b, n, i] = (weights / weights.sum()) @ v[seen]
    return out.to(query.dtype)


def masking(query, key, atten_mask, sparse_mode):
    sq, sk = query.shape[2], key.shape[2]
    if atten_mask is None:
        return lambda b, n, i, j: False  # the mode is ignored then
    demand(atten_mask.dtype in (torch.bool, torch.uint8), "atten_mask is bool or uint8")
    if sparse_mode in (2, 3):
        demand(atten_mask.shape == (2048, 2048), "a causal mode takes the compressed mask")
        demand(bool(atten_mask[0, 1]) and not bool(atten_mask[1, 0]), "the compressed mask hides what is above")
        offset = sk - sq if sparse_mode == 3 else 0
        return lambda b, n, i, j: j > i + offset
    demand(sparse_mode == 0, "sparse_mode")
    demand(atten_mask.shape[-2:] == (sq, sk), "the mask is not (..., queries, keys)")
    full = atten_mask.expand(query.shape[0], query.shape[1], sq, sk)
    return lambda b, n, i, j: bool(full[b, n, i, j])


@documented
def npu_fusion_attention(query, key, value, head_num, input_layout, atten_mask=None, scale=1.0, **given):
    demand(input_layout == "BNSD" and head_num == query.shape[1], "layout and heads")
    demand(given.get("keep_prob", 1.0) == 1.0, "dropout is not emulated")
    hidden = masking(query, key, atten_mask, given.get("sparse_mode", 0))
    out = attended(query, key, value, scale, hidden, given.get("inner_precise", 0))
    sums = torch.zeros(*query.shape[:3], 8)
    return out, sums, sums, torch.zeros(0), 0, 0, 0


@documented
def npu_fused_infer_attention_score(
    query, key, value, *, num_heads=1, num_key_value_heads=0, input_layout="BSH", **given
):
    demand(input_layout == "BNSD" and num_heads == query.shape[1], "layout and heads")
    demand((num_key_value_heads or num_heads) == key.shape[1], "key heads")
    demand(all(tensor.is_contiguous() for tensor in (query, key, value)), "it takes contiguous tensors")
    mask = given.get("atten_mask")
    mode = 0 if query.shape[2] == 1 and mask is None else given.get("sparse_mode", 0)
    demand(query.shape[2] > 1 or mode == 0, "no causal mode for one query")
    precise = given.get("inner_precise", 0)
    demand(query.shape[2] > 1 or precise < 2, "inner_precise of one query is 0 or 1")
    hidden = masking(query, key, mask, mode)
    return attended(query, key, value, given.get("scale", 1.0), hidden, precise), torch.zeros(1)


@documented
def npu_cross_entropy_loss(input, target, weight=None, reduction="mean", ignore_index=-100, **given):
    demand(target.dtype == torch.int64, "target is int64")
    demand(bool(((target >= 0) & (target < input.shape[1])).all()), "targets lie in [0, C)")
    demand(not given and weight is None, "only the defaults are emulated")
    x = input.double()
    log_prob = x - torch.log(torch.exp(x).sum(-1, keepdim=True))
    losses = torch.stack([-log_prob[row, target[row]] for row in range(len(x))])
    losses = losses if reduction == "none" else losses.mean().reshape(1)
    return losses.to(input.dtype), log_prob.to(input.dtype), torch.zeros(0), torch.zeros(0)


def softmax(x):
    weights = torch.exp(x.double())
    return weights / weights.sum(-1, keepdim=True)


def best(scores, k):
    """The k largest of each row, by sorting Python numbers."""
    ids = [sorted(range(len(row)), key=lambda e: -row[e])[:k] for row in scores.tolist()]
    ids = torch.tensor(ids)
    return scores.gather(-1, ids), ids.to(torch.int32)


@documented
def npu_moe_gating_top_k_softmax(x, finished=None, k=1):
    values, ids = best(softmax(x), k)
    if finished is not None:
        demand(finished.dtype == torch.bool and finished.shape == x.shape[:-1], "finished")
        ids[finished] = x.shape[-1]
    rows = torch.tensor([[j * len(x) + i for j in range(k)] for i in range(len(x))], dtype=torch.int32)
    return values.to(x.dtype), ids, rows


@documented
def npu_moe_gating_top_k_softmax_v2(x, *, k=1, finished=None, renorm=0, output_softmax=False):
    values, ids = best(x.double() if renorm else softmax(x), k)
    if finished is not None:
        ids[finished] = x.shape[-1]
    return (softmax(values) if renorm else values).to(x.dtype), ids, torch.zeros(0)


@documented
def npu_moe_gating_top_k(
    x, k, *, bias=None, k_group=1, group_count=1, group_select_mode=0, renorm=0, norm_type=0, routed_scaling_factor=1.0
):
    demand(renorm == 0, "renorm is 0")
    scores = 1 / (1 + torch.exp(-x.double())) if norm_type == 1 else softmax(x)
    biased = scores + (0 if bias is None else bias.double())
    size = x.shape[1] // group_count
    for row in biased:
        groups = row.view(group_count, size)
        worth = [sum(sorted(g.tolist())[-2 if group_select_mode else -1 :]) for g in groups]
        for g in sorted(range(group_count), key=lambda g: -worth[g])[k_group:]:
            groups[g] = -math.inf
    _, ids = best(biased, k)
    gates = scores.gather(-1, ids.long())
    if norm_type == 1:
        gates = gates / gates.sum(-1, keepdim=True)
    return (gates * routed_scaling_factor).to(x.dtype), ids, torch.zeros(0)


def int32(*tensors):
    demand(all(tensor.dtype == torch.int32 for tensor in tensors), "indices are int32")


@documented
def npu_moe_init_routing(x, row_idx, expert_idx, active_num):
    int32(row_idx, expert_idx)
    demand(row_idx.shape == expert_idx.shape, "one place for each expert")
    pairs = sorted(
        zip(expert_idx.flatten().tolist(), row_idx.flatten().tolist(), strict=True), key=lambda pair: pair[0]
    )
    where = [0] * len(pairs)
    for row, (_, place) in enumerate(pairs):
        where[place] = row
    rows = torch.stack([x[place % len(x)] for _, place in pairs])
    experts = torch.tensor([expert for expert, _ in pairs], dtype=torch.int32)
    return rows[: active_num * expert_idx.shape[1]], torch.tensor(where, dtype=torch.int32), experts


@documented
def npu_moe_init_routing_v2(x, expert_idx, *, expert_num=-1, **given):
    int32(expert_idx)
    demand(given["drop_pad_mode"] == 0 and given["quant_mode"] == -1, "modes")
    demand(given["expert_tokens_num_flag"] is True and given["expert_tokens_num_type"] == 1, "counts must be asked for")
    demand(given["active_expert_range"] == [0, expert_num] and given["row_idx_type"] == 0, "range and row_idx_type")
    demand(given["active_num"] == expert_idx.numel(), "all pairs are active")
    k, ids = expert_idx.shape[1], expert_idx.flatten().tolist()
    order = [pair for expert in range(expert_num) for pair, found in enumerate(ids) if found == expert]
    where = torch.tensor([order.index(pair) for pair in range(len(ids))], dtype=torch.int32)
    counts = torch.tensor([ids.count(expert) for expert in range(expert_num)])
    return torch.stack([x[pair // k] for pair in order]), where, counts, torch.zeros(0)


@documented
def npu_moe_compute_expert_tokens(sorted_expert_for_source_row, num_expert):
    int32(sorted_expert_for_source_row)
    ids = sorted_expert_for_source_row.tolist()
    return torch.tensor([sum(found <= expert for found in ids) for expert in range(num_expert)], dtype=torch.int32)


@documented
def npu_moe_finalize_routing(
    expanded_permuted_rows,
    skip1,
    skip2,
    bias,
    scales,
    expanded_src_to_dst_row,
    export_for_source_row,
    drop_pad_mode=0,
    k=1,
):
    int32(expanded_src_to_dst_row, export_for_source_row)
    demand(skip2 is None or skip1 is not None, "skip2 needs skip1")
    tokens, choices = scales.shape
    out = torch.zeros(tokens, expanded_permuted_rows.shape[1], dtype=torch.float64)
    for i in range(tokens):
        for j in range(choices):
            row = expanded_permuted_rows[expanded_src_to_dst_row[i + j * tokens]].double()
            out[i] += scales[i, j] * (row + (0 if bias is None else bias[export_for_source_row[i, j]].double()))
        out[i] += 0 if skip1 is None else skip1[i]
    return out.to(expanded_permuted_rows.dtype)


@documented
def npu_moe_token_permute(tokens, indices, num_out_tokens=None, padded_mode=False):
    demand(tokens.dtype == torch.bfloat16 and indices.dtype == torch.int64, "bfloat16 tokens, int64 indices")
    demand(not padded_mode and num_out_tokens == indices.numel(), "all rows")
    ids = indices.flatten().tolist()
    order = sorted(range(len(ids)), key=lambda pair: ids[pair])
    inverse = [order.index(pair) for pair in range(len(ids))]  # the other reading than the reference's
    rows = torch.stack([tokens[pair // indices.shape[1]] for pair in order])
    return rows, torch.tensor(inverse, dtype=torch.int32)


@documented
def npu_moe_token_unpermute(permuted_tokens, sorted_indices, probs=None, padded_mode=False, restore_shape=None):
    demand(permuted_tokens.dtype == torch.bfloat16 and not padded_mode, "bfloat16")
    tokens, k = probs.shape
    order = sorted_indices.tolist()
    out = torch.zeros(tokens, permuted_tokens.shape[1], dtype=torch.float64)
    for row, pair in enumerate(order):  # here it is the order, as in the document of this function
        out[pair // k] += probs[pair // k, pair % k].double() * permuted_tokens[row].double()
    return out.to(permuted_tokens.dtype)


@documented
def npu_moe_token_permute_with_routing_map(tokens, routing_map, *, probs=None, num_out_tokens=None, drop_and_pad=False):
    demand(routing_map.dtype in (torch.bool, torch.int8) and not drop_and_pad, "map")
    demand(num_out_tokens == int(routing_map.sum()), "all rows")
    chosen = [t for e in range(routing_map.shape[1]) for t in range(len(tokens)) if routing_map[t, e]]
    return torch.stack([tokens[t] for t in chosen]), torch.zeros(0), torch.tensor(chosen, dtype=torch.int32)


@documented
def npu_moe_token_unpermute_with_routing_map(
    permuted_tokens, sorted_indices, restore_shape, *, probs=None, routing_map=None, drop_and_pad=False
):
    demand(restore_shape == [len(probs), permuted_tokens.shape[1]] and not drop_and_pad, "shape")
    scales = [probs[t, e] for e in range(probs.shape[1]) for t in range(len(probs)) if routing_map[t, e]]
    out = torch.zeros(restore_shape, dtype=torch.float64)
    for row, t in enumerate(sorted_indices.tolist()):
        out[t] += scales[row].double() * permuted_tokens[row].double()
    return out.to(permuted_tokens.dtype)


@documented
def npu_grouped_matmul(x, weight, *, group_list=None, split_item=0, group_type=None, group_list_type=0, **given):
    demand(len(x) == len(weight) == 1 and split_item in (2, 3) and group_list_type == 0 and not given, "one output")
    demand(isinstance(group_list, Tensor) and group_list.dtype == torch.int64, "group_list is an int64 tensor")
    ends = group_list.tolist()
    demand(ends == sorted(ends), "group_list is cumulative")
    left, right, starts = x[0].double(), weight[0].double(), [0, *ends[:-1]]
    if group_type == 0:
        demand(ends[-1] == len(left), "group_list ends with the rows")
        parts = [left[s:e] @ right[i] for i, (s, e) in enumerate(zip(starts, ends, strict=True))]
        return [torch.cat(parts).to(x[0].dtype)]
    demand(group_type == 2 and ends[-1] == left.shape[1], "group_type")
    parts = [left[:, s:e] @ right[s:e] for s, e in zip(starts, ends, strict=True)]
    return [torch.stack(parts).to(x[0].dtype)]


@documented
def npu_quant_matmul(x1, x2, scale, *, pertoken_scale=None, bias=None, output_dtype=None):
    demand(x1.dtype == x2.dtype == torch.int8, "int8 factors")
    demand(output_dtype in (torch.float16, torch.bfloat16), "without output_dtype the result would be int8")
    demand(pertoken_scale.dtype == torch.float32 and pertoken_scale.shape == x1.shape[:1], "pertoken_scale")
    demand(bias is None or bias.dtype == torch.int32, "bias")
    total = x1.to(torch.int64)[:, :, None].mul(x2.to(torch.int64)[None]).sum(1)
    total = total if bias is None else total + bias
    return (total.double() * scale.double() * pertoken_scale.double()[:, None]).to(output_dtype)


@documented
def npu_dynamic_quant(input, *, quant_mode="pertoken"):
    x = input.double()
    scale = x.abs().max(-1).values / 127
    return torch.round(x / scale[..., None]).to(torch.int8), scale.to(torch.float32)


@documented
def npu_quantize(input, scales, zero_points, dtype, axis=1, div_mode=True):
    demand(dtype == torch.qint8, "dtype is a type of torch")
    demand(scales.shape == (input.shape[axis],), "scales lie along the axis")
    moved = input.double().movedim(axis, -1)
    value = moved / scales.double() if div_mode else moved * scales.double()
    value = value + (0 if zero_points is None else zero_points.double())
    return value.round().clamp(-128, 127).to(torch.int8).movedim(-1, axis)


@documented
def npu_weight_quant_batchmatmul(x, weight, antiquant_scale, antiquant_offset=None):
    offset = 0 if antiquant_offset is None else antiquant_offset.double()
    return (x.double() @ ((weight.double() + offset) * antiquant_scale.double())).to(x.dtype)


@documented
def npu_dequant_swiglu_quant(x, *, weight_scale=None, activation_scale=None, activate_left=False, quant_mode=0):
    demand(
        x.dtype == torch.int32 and weight_scale.ndim == 2 and quant_mode == 1, "int32, scales (groups, 2 I), dynamic"
    )
    wide = x.double() * weight_scale.double() * activation_scale.double()[:, None]
    left, right = wide[:, : x.shape[1] // 2], wide[:, x.shape[1] // 2 :]
    return npu_dynamic_quant(silu(left) * right if activate_left else silu(right) * left)
