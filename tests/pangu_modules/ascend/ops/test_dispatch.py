"""Dispatch: what is fused, refused and said, under each setting; explanations and records."""

import warnings

import pytest
import torch
from npu_checks import through
from npu_emulator import NpuEmulator

from pangu_modules.ascend.ops import OPERATORS, explain, fused_ops, recorded, rms_norm, set_fused_ops
from pangu_modules.ascend.ops.dispatch import SETTINGS

X, WEIGHT = torch.randn(2, 64), torch.ones(64)


@pytest.fixture(autouse=True)
def as_before():
    SETTINGS.warned.clear()
    yield
    set_fused_ops("auto")


def test_off_and_auto_on_the_cpu_take_the_reference():
    for mode in ("auto", "off"):
        with fused_ops(mode):
            torch.testing.assert_close(rms_norm(X, WEIGHT), rms_norm.reference(X, WEIGHT), rtol=0, atol=0)


def test_auto_fuses_where_it_can_and_off_does_not():
    with through(NpuEmulator()) as emulator:
        rms_norm(X, WEIGHT)
        assert emulator.calls == {"npu_rms_norm": 1}
        with fused_ops("off"):
            rms_norm(X, WEIGHT)
        assert emulator.calls == {"npu_rms_norm": 1}


def test_on_names_type_and_remedy():
    with (
        through(NpuEmulator(), mode="on"),
        pytest.raises(ValueError, match="takes float16, bfloat16 or float32, not") as e,
    ):
        rms_norm(X.double(), WEIGHT.double())
    assert "cast to float32, or take fused_ops='auto'" in str(e.value)


def test_on_refuses_the_cpu():
    with fused_ops("on"), pytest.raises(ValueError, match="rms_norm cannot be fused, because a tensor is on cpu: move"):
        rms_norm(X, WEIGHT)


def test_auto_warns_once_for_each_operator_and_reason():
    with through(NpuEmulator()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            rms_norm(X.double(), WEIGHT.double())
        for dimensions in (9, 10, 11):  # one reason, whatever the sizes
            rms_norm(X.view(*[1] * (dimensions - 2), *X.shape), WEIGHT)
    assert len(caught) == 2
    assert "not fused on the NPU: rms_norm: reference, because it takes" in str(caught[0].message)


def test_missing_library_and_missing_function_are_reasons():
    with through(None):
        assert explain("rms_norm", X, WEIGHT).reason == "torch_npu is not loaded"
    with through(object()):
        assert explain("rms_norm", X, WEIGHT).reason == "torch_npu of this version has no npu_rms_norm"


def test_inference_operators_refuse_gradients():
    x = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    with through(NpuEmulator()):
        assert "needs gradients" in explain("dynamic_quant", x).reason
        with torch.no_grad():
            assert explain("dynamic_quant", x).fused


def test_records_say_what_an_npu_would_fuse():
    with recorded() as records:
        rms_norm(X, WEIGHT)
        rms_norm(X.double(), WEIGHT.double())
    assert [record.fused for record in records] == [True, False]
    with recorded(as_if_on_npu=False) as records:
        rms_norm(X, WEIGHT)
    assert records[0].reason == "a tensor is on cpu"
    assert SETTINGS.simple


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no operator 'rms_nrom' Did you mean 'rms_norm'\?"):
        explain("rms_nrom", X)
    with pytest.raises(ValueError, match="fused_ops='yes': give 'auto', 'on' or 'off'"):
        set_fused_ops("yes")


def test_keywords_alone_are_dispatched_too():
    with through(NpuEmulator()) as emulator:
        rms_norm(x=X, weight=WEIGHT)
    assert emulator.calls == {"npu_rms_norm": 1}


def test_operators_say_what_they_are():
    assert repr(OPERATORS["rms_norm"]) == "<operator rms_norm, fused by torch_npu.npu_rms_norm>"
