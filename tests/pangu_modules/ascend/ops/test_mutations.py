"""Mutations of the dispatch table: for each, the named check of `test_operators` rejects it."""

from dataclasses import replace

import pytest
import torch
from npu_checks import check_numbers, check_signature
from npu_emulator import ContractError

from pangu_modules.ascend.ops import OPERATORS
from pangu_modules.ascend.ops.operator import FusedCall

# check_signature is test_calls_fit_the_signature, check_numbers is test_calls_compute_what_the_reference_does.
CHECKS = {"signature": check_signature, "numbers": check_numbers}


def mapped(name, change):
    """The operator with its call changed: `change(args, kwargs)` returns new ones."""
    operator = OPERATORS[name]

    def call(*args, **kwargs):
        made = operator.call(*args, **kwargs)
        return FusedCall(*change(list(made.args), dict(made.kwargs)))

    return replace(operator, call=call)


def renamed(name, old, new):
    return lambda: mapped(name, lambda args, kwargs: (args, {new if k == old else k: v for k, v in kwargs.items()}))


def given(name, **changes):
    return lambda: mapped(name, lambda args, kwargs: (args, kwargs | changes))


def without(name, key):
    return lambda: mapped(name, lambda args, kwargs: (args, {k: v for k, v in kwargs.items() if k != key}))


def changed(name, key, function):
    return lambda: mapped(
        name, lambda args, kwargs: (args, {k: function(v) if k == key else v for k, v in kwargs.items()})
    )


def placed(name, function):
    return lambda: mapped(name, lambda args, kwargs: (function(*args), kwargs))


def flipped(tensor):
    return torch.cat(tensor.chunk(2, -1)[::-1], -1)


MUTATIONS = {
    "an argument renamed": ("signature", renamed("rms_norm", "epsilon", "eps")),
    "the mask under torch's name": ("signature", renamed("fusion_attention", "atten_mask", "attn_mask")),
    "tokens spelled as in the second version": ("signature", given("fusion_attention", next_tokens=0)),
    "a tensor where a list belongs": ("signature", placed("grouped_matmul", lambda x, weight: (x[0], weight[0]))),
    "a list where a tensor belongs": ("signature", placed("swiglu", lambda x: ([x],))),
    "a keyword by its place": ("signature", placed("gating_top_k_softmax", lambda x: (x, 2))),
    "a number as a string": ("signature", given("swiglu", dim="-1")),
    "weight and input swapped": ("numbers", placed("rms_norm", lambda x, weight: (weight[None], x[0, 0]))),
    "epsilon left out": ("numbers", changed("rms_norm", "epsilon", lambda value: 1.0)),
    "1 / rms for the sum": (
        "numbers",
        lambda: replace(OPERATORS["add_rms_norm"], result=lambda out, *_, **__: out[:2]),
    ),
    "pairs for halves": ("numbers", changed("rotary_mul", "rotary_mode", lambda mode: "interleave")),
    "sine and cosine swapped": ("numbers", placed("rotary_mul", lambda x, cos, sin: (x, sin, cos))),
    "SwiGLU's halves in the other order": ("numbers", placed("swiglu", lambda x: (flipped(x),))),
    "gate and up joined in the other order": ("numbers", placed("gated_silu", lambda x: (flipped(x),))),
    "the other half activated": ("numbers", changed("geglu", "activate_left", lambda left: not left)),
    "torch's polarity of the mask": ("numbers", changed("fusion_attention", "atten_mask", lambda m: m.logical_not())),
    "top left for bottom right": ("numbers", changed("fusion_attention", "sparse_mode", {3: 2, 2: 2, 0: 0}.get)),
    "bottom right for top left": ("numbers", changed("infer_attention", "sparse_mode", {3: 3, 2: 3, 0: 0}.get)),
    "padding without the correction of blind rows": ("numbers", without("fusion_attention", "inner_precise")),
    "a causal mode without its mask": ("numbers", without("fusion_attention", "atten_mask")),
    "the scale left out": ("numbers", without("fusion_attention", "scale")),
    "positions before heads": ("numbers", placed("fusion_attention", lambda *args: (*args[:4], "BSND"))),
    "as many key heads as heads": ("numbers", without("infer_attention", "num_key_value_heads")),
    "ignored targets as they are": (
        "numbers",
        lambda: replace(OPERATORS["cross_entropy"], call=lambda x, t, i=-100: FusedCall((x, t), {"reduction": "none"})),
    ),
    "a mean for each row's loss": ("numbers", without("cross_entropy", "reduction")),
    "int32 for int64 ends": ("numbers", changed("grouped_matmul", "group_list", lambda ends: ends.to(torch.int32))),
    "counts for ends": (
        "numbers",
        changed("grouped_matmul", "group_list", lambda ends: ends.diff(prepend=ends.new_zeros(1))),
    ),
    "int64 for int32 experts": (
        "numbers",
        placed("init_routing", lambda x, row, expert, active: (x, row, expert.long(), active)),
    ),
    "the schema's default that is not taken": ("numbers", given("init_routing_v2", expert_tokens_num_flag=False)),
    "int32 for int64 indices": ("numbers", placed("token_permute", lambda tokens, ids: (tokens, ids.int()))),
    "int8 by default": ("numbers", without("quant_matmul", "output_dtype")),
    "the gate last": ("numbers", without("dequant_swiglu_quant", "activate_left")),
    "products for quotients": ("numbers", given("quantize", div_mode=False)),
    "gates not renormalized": ("numbers", given("gating_top_k_renormalized", renorm=0)),
    "groups and kept groups swapped": (
        "numbers",
        lambda: mapped(
            "gating_top_k",
            lambda args, kw: (args, kw | {"k_group": kw["group_count"], "group_count": kw["k_group"]}),
        ),
    ),
    "the second skip alone": (
        "numbers",
        placed("finalize_routing", lambda rows, skip, none, *others: (rows, none, skip, *others)),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_rejected(name):
    check, mutate = MUTATIONS[name]
    mutant = mutate()
    with pytest.raises(ContractError):
        CHECKS[check](mutant)


def test_there_are_enough_of_both_kinds():
    assert len(MUTATIONS) >= 12
    assert {check for check, _ in MUTATIONS.values()} == set(CHECKS)
