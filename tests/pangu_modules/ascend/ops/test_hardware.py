"""On an NPU: every operator in every type against its reference on the CPU, and what documents leave open.

``python -m pytest -m npu tests/pangu_modules/ascend/ops/test_hardware.py`` on a machine with CANN and torch_npu.
"""

import pytest
import torch
from npu_checks import compare, detached, examples, several

from pangu_modules.ascend.ops import OPERATORS, fused_ops, token_permute, token_unpermute

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(not (hasattr(torch, "npu") and torch.npu.is_available()), reason="no NPU was found"),
]


def on_npu(values):
    return [value.to("npu") if isinstance(value, torch.Tensor) else value for value in values]


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, o in OPERATORS.items() for dtype in o.dtypes])
def test_operator_computes_what_its_reference_does(name, dtype):
    operator = OPERATORS[name]
    for example, again in zip(examples(operator, dtype), examples(operator, dtype), strict=True):
        kwargs = dict(zip(example.kwargs, on_npu(example.kwargs.values()), strict=True))
        with torch.no_grad(), fused_ops("on"):
            found = several(operator(*on_npu(detached(example.args)), **kwargs))
        wanted = several(operator.reference(*detached(again.args), **again.kwargs))
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if not (name.startswith("token_permute") and place == 1):  # opaque: see the operator
                compare(one.cpu(), other, f"{name}, {example.name}, {dtype}, result {place}")


def test_a_permutation_and_its_undoing_agree_about_what_lies_between():
    tokens = torch.randn(6, 32, dtype=torch.bfloat16)
    indices = torch.rand(6, 8).argsort(-1)[:, :2]
    probs = torch.full((6, 2), 0.5, dtype=torch.bfloat16)
    with fused_ops("on"):
        rows, between = token_permute(*on_npu([tokens, indices]))
        again = token_unpermute(rows, between, probs.to("npu"))
    torch.testing.assert_close(again.cpu(), tokens)
