"""Stored signatures: kinds of arguments, differences, and the command where torch_npu does not load."""

import pytest
import torch

from pangu_modules.ascend.ops import schemas
from pangu_modules.ascend.ops.schemas import Argument

TENSOR = torch.ones(2)
INSIDE = [
    (TENSOR, "Tensor"),
    (None, "Optional[Tensor]"),
    ([TENSOR], "List[Tensor]"),
    ((1, 2), "Optional[List[int]]"),
    (1, "float"),
    (3, "int"),
    (True, "bool"),
    ("half", "str"),
]
OUTSIDE = [
    ([TENSOR], "Tensor"),
    (TENSOR, "List[Tensor]"),
    (None, "Tensor"),
    (True, "int"),
    (1.0, "int"),
    ([1.0], "List[int]"),
    (torch.int8, "int"),
    (1, "bool"),
    (1, "a kind of a later version"),
]


@pytest.mark.parametrize(("value", "kind"), INSIDE)
def test_kind_is_taken(value, kind):
    assert schemas.fits(value, kind)


@pytest.mark.parametrize(("value", "kind"), OUTSIDE)
def test_kind_is_refused(value, kind):
    assert not schemas.fits(value, kind)


def test_types_of_torch_are_integers_that_name_types():
    assert schemas.fits(torch.int8, "Optional[int]", "output_dtype")


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((TENSOR,), {}, "gamma is missing"),
        ((TENSOR, TENSOR), {"gamma": TENSOR}, "gamma is given twice"),
        ((TENSOR, TENSOR, 1e-6, 1), {}, "4 positional arguments, and it takes 3"),
        ((TENSOR, TENSOR), {"eps": 1.0}, "no argument eps"),
        ((TENSOR, [TENSOR]), {}, "gamma is Tensor, not list"),
    ],
)
def test_misfits_are_said(args, kwargs, words):
    assert words in schemas.misfit("npu_rms_norm", args, kwargs)


def test_functions_that_are_not_there_are_said():
    assert schemas.misfit("npu_nothing", (), {}) == "there is no npu_nothing"


def test_another_version_is_told_function_by_function():
    found = dict(schemas.stored())
    assert schemas.differences(found) == []
    found["npu_swiglu"] = [[Argument("x", "Tensor", False, True)]]
    del found["npu_rms_norm"]
    assert schemas.differences(found) == ["npu_rms_norm is missing", "npu_swiglu has other arguments"]


def test_without_torch_npu_the_command_says_so(capsys):
    assert schemas.main([]) == 2
    assert "torch_npu does not load" in capsys.readouterr().err
