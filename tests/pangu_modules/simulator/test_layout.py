"""Layout and Workload: what divides a model, the text form, and the enumeration."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pangu_modules.common.errors import UsageError
from pangu_modules.simulator.hardware import Efficiency
from pangu_modules.simulator.layout import (
    Layout,
    Request,
    Workload,
    efficiency_from,
    layout_from,
    layouts,
    parse_layout,
    workload_from,
)
from pangu_modules.simulator.model_shape import DENSE_32B, PANGU_PRO_MOE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attention_tp=3,expert_ep=3", r"attention_tp 3 must divide num_heads 40: \[1, 2, 4, 5,"),
        ("attention_tp=5,expert_ep=5", "attention_tp 5 must divide num_kv_heads 8, or be a multiple of it"),
        ("attention_tp=4,expert_ep=4,shared_tp=3", r"shared_tp 3 must divide the 4 devices: \[1, 2, 4\]"),
        ("attention_tp=4,expert_ep=2", r"expert_tp \* expert_ep = 1 \* 2 must equal .* = 1 \* 4"),
        ("attention_dp=16,expert_ep=16", r"expert_ep 16 must divide num_groups 8 .*: \[1, 2, 4, 8\]"),
        ("attention_dp=5,expert_tp=5", "expert_tp 5 must divide moe_intermediate_size 1344"),
        ("attention_dp=3,expert_ep=3", r"expert_ep 3 must divide num_experts 64"),
    ],
)
def test_layouts_that_do_not_divide_the_model(text: str, message: str) -> None:
    values = parse_layout(text).layout
    with pytest.raises(UsageError, match=message):
        layout_from(values).check(PANGU_PRO_MOE)


def test_the_papers_layout_divides_the_model() -> None:
    layout = Layout(attention_dp=2, attention_tp=4, expert_tp=2, expert_ep=4, shared_tp=8)
    layout.check(PANGU_PRO_MOE)
    assert layout.devices == 8
    assert layout_from(parse_layout(str(layout)).layout) == layout
    assert layout_from(parse_layout(str(Layout())).layout) == Layout()


def test_text_form() -> None:
    request = parse_layout("attention_dp=2, precision=bf16,decode_batch=64,efficiency.link=0.5")
    assert request == Request({"attention_dp": "2"}, {"precision": "bf16", "decode_batch": "64"}, {"link": "0.5"})
    assert efficiency_from(request.efficiency) == Efficiency(link=0.5)
    served = workload_from(request.workload)
    assert served.decode_batch == 64
    assert served.kv_bits == 16  # the cache of an unquantized model
    assert parse_layout("auto") == parse_layout("") == Request()
    assert parse_layout("devices=4,kv_bits=16").devices == 4
    assert workload_from({"kv_bits": "16"}).kv_bits == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atention_dp=2", r"got 'atention_dp=2'. Did you mean 'attention_dp'\? Keys: devices, attention_dp"),
        ("attention_dp", "expected key=value, got 'attention_dp'"),
        ("attention_dp=2,attention_dp=4", "attention_dp is given twice"),
        ("efficiency.link=0.5,efficiency.link=0.5", "efficiency.link is given twice"),
        ("link=0.5", r"got 'link=0.5'. .*efficiency.link"),
        ("devices=many", "devices must be a positive whole number, got 'many'"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_layout(text)


def test_bad_values_name_the_field() -> None:
    with pytest.raises(UsageError, match=r"layout.attention_dp: .*greater than 0, got '0'"):
        layout_from({"attention_dp": "0"})
    with pytest.raises(UsageError, match=r"layout.efficiency.link: .*less than or equal to 1, got '1.5'"):
        efficiency_from({"link": "1.5"})
    with pytest.raises(UsageError, match=r"layout.precision: Input should be 'bf16'.*, got 'fp8'"):
        workload_from({"precision": "fp8"})
    with pytest.raises(ValidationError, match="kv_bits 8 goes with a quantized precision"):
        Workload(precision="bf16")


def test_all_layouts_of_a_node() -> None:
    found = list(layouts(PANGU_PRO_MOE, 4))
    assert len(found) == len(set(map(str, found))) == 3 * 3 * 3  # attention TP, shared TP and EP, each 1, 2 or 4
    coarse = PANGU_PRO_MOE.derive(num_experts_per_tok=2, num_groups=1)
    exchanged = [layout for layout in layouts(coarse, 4) if layout.dispatch == "all_to_all"]
    assert [layout.expert_ep for layout in exchanged] == [4] * 9  # a token visits at most two of four parts
    assert len(list(layouts(DENSE_32B, 4))) == 3 * 3
    top_k = PANGU_PRO_MOE.derive(num_groups=2)
    assert {layout.expert_ep for layout in layouts(top_k, 8)} == {1, 2}  # whole groups per device
