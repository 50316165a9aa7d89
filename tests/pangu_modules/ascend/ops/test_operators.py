"""Every operator of the table: its call against torch_npu's signature and documents, its gradients, its limits."""

import sys
from pathlib import Path

import pytest
import torch
from npu_checks import check_numbers, check_signature, detached, examples, several, through
from npu_emulator import FUNCTIONS, NpuEmulator

import pangu_modules.ascend.ops as public
from pangu_modules.ascend.ops import OPERATORS, dispatch, schemas
from pangu_modules.ascend.ops.examples import Maker
from pangu_modules.ascend.ops.recomputed import recomputed

ROOM = str(Path(public.__file__).parent)
DIFFERENTIABLE = [name for name, operator in OPERATORS.items() if operator.gradients != "none"]
RECOMPUTED = [name for name, operator in OPERATORS.items() if operator.gradients == "recomputed"]


@pytest.mark.parametrize("name", OPERATORS)
def test_calls_fit_the_signature(name):
    check_signature(OPERATORS[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_calls_compute_what_the_reference_does(name):
    check_numbers(OPERATORS[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_public_by_its_name_and_explained_by_its_reference(name):
    assert getattr(public, name) is OPERATORS[name]
    assert OPERATORS[name].__doc__ == OPERATORS[name].reference.__doc__


def test_examples_reach_every_line_of_every_mapping():
    """A form of a call that no example makes would escape all checks above."""
    reached, mappings = set(), {}

    def trace(frame, event, argument):
        code = frame.f_code
        if code.co_filename.startswith(ROOM):
            mappings[code] = {line for _, _, line in code.co_lines() if line and line > code.co_firstlineno}
            reached.add((code, frame.f_lineno))
            return trace
        return None

    calls = [
        (operator, example)
        for operator in OPERATORS.values()
        for example in examples(operator, operator.dtypes[-1], "meta")
    ]
    sys.settrace(trace)
    try:
        for operator, example in calls:
            operator.call(*example.args, **example.kwargs)
    finally:
        sys.settrace(None)
    missed = [
        (code.co_qualname, line)
        for code, lines in mappings.items()
        for line in lines
        if (code, line) not in reached and code.co_name != "<genexpr>"
    ]
    assert len(mappings) > 20
    assert not missed


def test_all_signatures_and_emulated_functions_are_used():
    symbols = {operator.symbol for operator in OPERATORS.values()}
    assert symbols == set(schemas.stored()) == set(FUNCTIONS)


def in_double(name):
    """The operator's examples in float64, with gradients asked for."""
    for example in OPERATORS[name].examples(Maker(torch.float64)):
        doubled = [
            arg.detach().double().requires_grad_() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
            for arg in example.args
        ]
        kwargs = {
            k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in example.kwargs.items()
        }
        yield doubled, kwargs


def floating(outputs):
    return tuple(output for output in several(outputs) if output.is_floating_point() and output.requires_grad)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_references_have_right_gradients(name):
    for args, kwargs in in_double(name):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
        assert torch.autograd.gradcheck(lambda *_: floating(OPERATORS[name](*args, **kwargs)), tensors)  # noqa: B023


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_gradients_are_those_of_the_reference(name):
    """Would fail if a gradient went to the wrong argument, or a second output's were lost."""
    for (args, kwargs), (again, _) in zip(in_double(name), in_double(name), strict=True):
        with through(NpuEmulator()) as emulator:
            fused = floating(recomputed(OPERATORS[name], tuple(args), kwargs))
        assert emulator.calls == {OPERATORS[name].symbol: 1}
        plain = floating(OPERATORS[name].reference(*again, **kwargs))
        assert len(fused) == len(plain) > 0
        for one, other in zip(fused, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        for outputs in (fused, plain):
            sum((output * torch.linspace(0.5, 1.5, output.shape[-1])).sum() for output in outputs).backward()
        for arg, other in zip(args, again, strict=True):
            if isinstance(arg, torch.Tensor) and arg.requires_grad:
                torch.testing.assert_close(arg.grad, other.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_dispatch_gives_gradients_to_operators_for_inference(name):
    operator = OPERATORS[name]
    example = examples(operator, torch.float32)[0]
    args = [arg.requires_grad_() if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in example.args]
    with through(NpuEmulator(), mode="on") as emulator:
        sum(output.sum() for output in floating(operator(*args, **example.kwargs))).backward()
    assert emulator.calls == {operator.symbol: 1}
    assert args[0].grad is not None


LIMITS = {
    "rms_norm": [
        (lambda m: (m.floats(64), m.floats(64)), "1 dimensions"),
        (lambda m: (m.floats(2, 64), m.floats(64, dtype=torch.float64)), "one type"),
        (lambda m: (m.floats(2, 64), m.floats(32)), "last dimension"),
        (lambda m: (m.floats(*[1] * 8, 64), m.floats(64)), "9 dimensions"),
    ],
    "add_rms_norm": [(lambda m: (m.floats(2, 64), m.floats(1, 64), m.floats(64)), "shape or type")],
    "rotary_mul": [
        (lambda m: (m.floats(3, 4, 16), *two(m.floats(3, 4, 16))), "four dimensions"),
        (lambda m: (m.floats(1, 1, 4, 896), *two(m.floats(1, 1, 4, 896))), "below 896"),
        (lambda m: (m.floats(1, 1, 4, 15), *two(m.floats(1, 1, 4, 15))), "even widths"),
        (lambda m: (m.floats(1000, 1, 1, 16), *two(m.floats(1, 1, 1, 16))), "not below 1000"),
        (lambda m: (m.floats(2, 3, 4, 16), *two(m.floats(1, 1, 1, 16))), "not shared"),
        (lambda m: (m.floats(2, 3, 4, 16), *two(m.floats(2, 1, 4, 16)), True), "pairs need one table"),
        (lambda m: (m.floats(2, 600, 1, 16), *two(m.floats(1, 1, 1, 16).requires_grad_())), "cos needs gradients"),
    ],
    "apply_rotary_pos_emb_": [
        (lambda m: (*two(m.floats(2, 3, 4, 32)), *two(m.floats(2, 3, 1, 32))), "64 or 128"),
        (lambda m: (*two(m.floats(2, 0, 4, 64)), *two(m.floats(2, 0, 1, 64))), "no token"),
        (lambda m: (*two(m.floats(2, 3, 4, 64)), *two(m.floats(1, 3, 1, 64))), "takes cos"),
    ],
    "swiglu": [(lambda m: (m.floats(2, 15),), "even size")],
    "gated_silu": [(lambda m: (m.floats(2, 16), m.floats(2, 8)), "shape or type")],
    "fusion_attention": [
        (lambda m: (*three(m.floats(1, 2, 3, 769)), 1.0), "at most 768"),
        (lambda m: (*three(m.floats(1, 257, 1, 16)), 1.0), "at most 256"),
        (lambda m: (m.floats(1, 3, 4, 16), *two(m.floats(1, 2, 4, 16)), 1.0), "a multiple"),
        (lambda m: (*three(m.floats(1, 2, 3, 16)), 1.0, m.floats(1, 1, 3, 3)), "takes bool"),
        (lambda m: (*three(m.floats(1, 2, 3, 16)), 1.0, m.given([[True]], torch.bool)), "the mask has"),
        (lambda m: (*three(m.floats(1, 2, 0, 16)), 1.0), "with tokens"),
    ],
    "infer_attention": [
        (lambda m: (*three(m.floats(1, 2, 3, 24)), 1.0), "multiples of 16"),
        (lambda m: (m.floats(1, 65, 3, 16), *two(m.floats(1, 1, 3, 16)), 1.0), "at most 64"),
        (lambda m: (*three(m.floats(1, 2, 1, 16)), 1.0, "top_left"), "no decoding step"),
    ],
    "cross_entropy": [
        (lambda m: (m.floats(2, 3, 4), m.integers(0, 3, 2)), "takes logits"),
        (lambda m: (m.floats(3, 4), m.integers(0, 3, 3, dtype=torch.int32)), "int64"),
        (lambda m: (m.floats(0, 4), m.integers(0, 3, 0)), "0 rows"),
    ],
    "grouped_matmul": [
        (lambda m: (m.floats(2, 8), m.floats(1, 8, 65_536), m.given([2], torch.int32)), "below 65536"),
        (lambda m: (m.floats(0, 8), m.floats(1, 8, 8), m.given([0], torch.int32)), "no row"),
    ],
    "gating_top_k_softmax": [(lambda m: (m.floats(2, 8), 9), "9 choices among 8")],
    "init_routing": [
        (lambda m: (m.floats(2, 8), m.choices(2, 4, 2), m.choices(2, 4, 2, torch.int32)), "int32"),
        (lambda m: (m.floats(2, 8), m.choices(2, 4, 2, torch.int32), m.choices(2, 4, 2)), "int32"),
    ],
    "token_permute": [(lambda m: (m.floats(2, 8), m.choices(2, 4, 2, torch.int32)), "int64")],
    "quant_matmul": [
        (lambda m: two(m.given([[1]], torch.int8)) + two(m.positive(1, dtype=torch.float64)), "not float32"),
    ],
    "dynamic_quant": [(lambda m: (m.floats(8),), "takes rows")],
}


JUST_INSIDE = {
    "rms_norm": lambda m: (m.floats(*[1] * 7, 64), m.floats(64)),
    "rotary_mul": lambda m: (m.floats(999, 1, 2, 894), *two(m.floats(1, 1, 2, 894))),
    "fusion_attention": lambda m: (m.floats(1, 256, 1, 768), *two(m.floats(1, 64, 1, 768)), 1.0),
    "infer_attention": lambda m: (m.floats(1, 64, 1, 512), *two(m.floats(1, 1, 1, 512)), 1.0),
    "grouped_matmul": lambda m: (m.floats(1, 65_535), m.floats(1, 65_535, 1), m.given([1], torch.int32)),
    "gating_top_k_softmax": lambda m: (m.floats(1, 1100), 1024),
    "token_permute": lambda m: (m.floats(1, 8), m.choices(1, 600, 512)),
}


@pytest.mark.parametrize("name", JUST_INSIDE)
def test_the_last_values_inside_the_limits_are_fused(name):
    operator = OPERATORS[name]
    with through(NpuEmulator()):
        explanation = operator.explain(*JUST_INSIDE[name](Maker(operator.dtypes[-1])))
    assert explanation.fused, explanation


def two(tensor):
    return tensor, tensor


def three(tensor):
    return tensor, tensor, tensor


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in LIMITS.items() for case in cases])
def test_outside_its_limits_a_call_is_not_fused_and_says_why(name, case):
    make, words = case
    operator = OPERATORS[name]
    args = make(Maker(operator.dtypes[-1] if operator.dtypes[-1].is_floating_point else torch.bfloat16))
    with through(NpuEmulator()):
        explanation = operator.explain(*args)
    assert not explanation.fused
    assert words in explanation.reason


@pytest.mark.parametrize("name", OPERATORS)
def test_examples_are_inside_the_limits(name):
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        for example in examples(operator, dtype):
            with through(NpuEmulator()):
                assert str(operator.explain(*example.args, **example.kwargs)).endswith(operator.symbol)


def test_golden_vector_of_a_permutation():
    """From torch_npu's document: the order, and the rows by expert."""
    indices = torch.tensor([[0, 4], [4, 3], [4, 2], [1, 1]])
    tokens = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
    rows, order = public.token_permute(tokens, indices)
    assert order.tolist() == [0, 6, 7, 5, 3, 1, 2, 4]
    assert rows.flatten().tolist() == [1, 0, 0, 3, 2, 1, 2, 3]


@pytest.mark.parametrize(("tokens", "experts", "groups", "chosen"), [(5, 8, 2, 4), (3, 64, 8, 8), (2, 6, 1, 3)])
def test_grouped_routing_is_a_softmax_over_all_experts(tokens, experts, groups, chosen):
    """Would fail if the group's share were left out: gates would then be softmaxes within groups."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))
    with through(NpuEmulator(), mode="on"):
        gates, ids = public.route_in_groups(logits, groups, chosen)
    scores = logits.double().softmax(-1)
    for token in range(tokens):
        wanted = []
        for group in range(groups):
            members = range(group * experts // groups, (group + 1) * experts // groups)
            wanted += sorted(members, key=lambda e: -scores[token, e])[: chosen // groups]
        assert ids[token].tolist() == wanted
        torch.testing.assert_close(gates[token].double(), scores[token, wanted], rtol=0, atol=1e-6)  # seen 6e-8


def test_a_row_of_zeros_is_quantized_to_zeros():
    quantized, scale = public.dynamic_quant(torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.bfloat16))
    assert quantized.tolist() == [[0, 0], [64, -127]]
    assert scale[0] == 0


def test_in_place_rotation_writes_its_arguments():
    example = examples(OPERATORS["apply_rotary_pos_emb_"], torch.float32)[0]
    query, before = example.args[0], example.args[0].clone()
    result, _ = OPERATORS["apply_rotary_pos_emb_"](*detached(example.args))
    assert result.data_ptr() == query.data_ptr()
    assert not torch.equal(query, before)


def test_settings_are_left_as_they_were():
    assert dispatch.SETTINGS.library is None
    assert dispatch.SETTINGS.device_type == "npu"
