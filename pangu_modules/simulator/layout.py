"""Layout: how a model is spread over devices; Workload: what it serves. Both can be written as one short text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, model_validator

from pangu_modules.common.config import Config
from pangu_modules.common.errors import UsageError, readable
from pangu_modules.common.names import nearest
from pangu_modules.simulator.hardware import Efficiency
from pangu_modules.simulator.model_shape import ModelShape

AUTO = "auto"
EFFICIENCY = "efficiency."  # before the fields of Efficiency in a layout text
AnyConfig = TypeVar("AnyConfig", bound=Config)


class Layout(Config):
    """Parallel layout over ``attention_dp * attention_tp`` devices, which all other parts share.

    Hidden states are passed on as in the paper's hierarchical hybrid parallelism: reduce-scatter after attention within
    its tensor-parallel group, all-gather before the MLP, reduce-scatter after it, all-gather before attention.
    """

    attention_dp: PositiveInt = Field(1, description="Replicas of attention, each with its own sequences (DP).")
    attention_tp: PositiveInt = Field(1, description="Devices that share the heads of one replica (TP).")
    expert_tp: PositiveInt = Field(1, description="Devices that share the width of one routed expert (TP).")
    expert_ep: PositiveInt = Field(1, description="Parts that the routed experts are divided into (EP).")
    shared_tp: PositiveInt = Field(1, description="Devices that share the shared expert, or a dense model's MLP (TP).")
    dispatch: Literal["all_gather", "all_to_all"] = Field(
        "all_gather", description="Send all tokens to all devices, or each only to its experts' devices."
    )

    @property
    def devices(self) -> int:
        """Devices of the whole layout, which every part of the model is spread over."""
        return self.attention_dp * self.attention_tp

    def check(self, shape: ModelShape) -> None:
        """Check that the layout divides the model.

        Raises:
            UsageError: it does not; the message names both numbers and what is allowed.
        """
        if shape.num_heads % self.attention_tp:
            allowed = _divisors(shape.num_heads)
            raise _refused("attention_tp", self.attention_tp, f"must divide num_heads {shape.num_heads}: {allowed}")
        keys, share = shape.num_kv_heads, self.attention_tp
        if keys % share and share % keys:
            raise _refused("attention_tp", share, f"must divide num_kv_heads {keys}, or be a multiple of it")
        if self.devices % self.shared_tp:
            allowed = _divisors(self.devices)
            raise _refused("shared_tp", self.shared_tp, f"must divide the {self.devices} devices: {allowed}")
        if shape.num_experts:
            self._check_experts(shape)

    def _check_experts(self, shape: ModelShape) -> None:
        if self.expert_tp * self.expert_ep != self.devices:
            raise UsageError(
                f"layout: expert_tp * expert_ep = {self.expert_tp} * {self.expert_ep} must equal attention_dp * "
                f"attention_tp = {self.attention_dp} * {self.attention_tp}: both are the number of devices"
            )
        if shape.moe_intermediate_size % self.expert_tp:
            width = shape.moe_intermediate_size
            raise _refused("expert_tp", self.expert_tp, f"must divide moe_intermediate_size {width}")
        if shape.num_experts % self.expert_ep:
            allowed = _divisors(shape.num_experts)
            raise _refused("expert_ep", self.expert_ep, f"must divide num_experts {shape.num_experts}: {allowed}")
        if shape.num_groups > 1 and shape.num_groups % self.expert_ep:
            allowed = _divisors(shape.num_groups)
            reason = f"must divide num_groups {shape.num_groups} (whole groups per device): {allowed}"
            raise _refused("expert_ep", self.expert_ep, reason)

    def __str__(self) -> str:
        """The layout as `parse_layout` reads it, without the defaults: ``attention_dp=2, attention_tp=4``."""
        given = [f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return ", ".join(given) or "attention_dp=1"


class Workload(Config):
    """Requests to serve, and the precision they are served in."""

    prompt_tokens: PositiveInt = Field(2048, description="Tokens of a prompt.")
    output_tokens: PositiveInt = Field(2048, description="Tokens generated per request.")
    prefill_batch: PositiveInt | None = Field(
        None, description="Prompts processed at once, over all devices; empty: one per replica of attention."
    )
    decode_batch: PositiveInt | None = Field(
        None, description="Requests decoded at once, over all devices; empty: the most that memory and latency allow."
    )
    max_step_ms: float = Field(100.0, gt=0, description="Longest decoding step (time per output token), ms.")
    precision: Literal["bf16", "w8a8", "w8a16", "w4a16"] = Field(
        "w8a8", description="Bits of weights (w) and of matrix products (a) in layers; embeddings stay in 16 bit."
    )
    kv_bits: Literal[8, 16] = Field(8, description="Bits of an element of the key/value cache.")
    communication_bits: Literal[8, 16] = Field(16, description="Bits of an element sent between devices.")
    voted_experts: PositiveInt | None = Field(
        None, description="Experts read per group in decoding (MERRouter of the public serving code); empty: all."
    )
    expert_load_cv: float = Field(
        0.0, ge=0, description="Lasting imbalance of a top-K router: std / mean of the load of experts; 0: uniform."
    )

    @model_validator(mode="after")
    def _check_bits(self) -> Self:
        if self.precision == "bf16" and self.kv_bits == 8:
            raise ValueError("kv_bits 8 goes with a quantized precision; for bf16 give kv_bits=16")
        return self

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight of attention and MLPs; embeddings and routers take 2."""
        return {"bf16": 2.0, "w8a8": 1.0, "w8a16": 1.0, "w4a16": 0.5}[self.precision]


@dataclass
class Request:
    """The parts of a layout text, not yet validated; `devices` where only their number is given."""

    layout: dict[str, str] = field(default_factory=dict)
    workload: dict[str, str] = field(default_factory=dict)
    efficiency: dict[str, str] = field(default_factory=dict)
    devices: int | None = None


def parse_layout(text: str) -> Request:
    """Split ``key=value,key=value``: fields of `Layout` and `Workload`, ``devices``, and ``efficiency.FIELD``.

    Raises:
        UsageError: an unknown key, a key given twice, or a part that is not ``key=value``.
    """
    request = Request()
    devices: dict[str, str] = {}
    places = {"devices": devices, **dict.fromkeys(Layout.model_fields, request.layout)}
    places |= dict.fromkeys(Workload.model_fields, request.workload)
    places |= dict.fromkeys((f"{EFFICIENCY}{name}" for name in Efficiency.model_fields), request.efficiency)
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if part == AUTO:
            continue
        if not equals or key not in places:
            raise UsageError(
                f"layout: expected key=value, got {part!r}.{nearest(key, places)} Keys: {', '.join(places)}"
            )
        if key.removeprefix(EFFICIENCY) in places[key]:
            raise UsageError(f"layout: {key} is given twice")
        places[key][key.removeprefix(EFFICIENCY)] = value
    request.devices = _device_count(devices.get("devices"))
    return request


def layout_from(values: dict[str, str]) -> Layout:
    """Return the layout of these fields, given as text; raises UsageError."""
    return _validated(Layout, values, "layout")


def efficiency_from(values: dict[str, str]) -> Efficiency:
    """Return the efficiency of these fields, given as text; raises UsageError."""
    return _validated(Efficiency, values, "layout.efficiency")


def workload_from(values: dict[str, str]) -> Workload:
    """Return the validated workload; the cache's 8 bits are a default of quantized models only. Raises UsageError."""
    defaults = {"kv_bits": 16} if values.get("precision") == "bf16" else {}
    numbers = {key: int(value) if key.endswith("_bits") and value.isdigit() else value for key, value in values.items()}
    return _validated(Workload, {**defaults, **numbers}, "layout")


def _validated(kind: type[AnyConfig], values: Mapping[str, Any], name: str) -> AnyConfig:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(readable(error, name)) from error


def layouts(shape: ModelShape, devices: int) -> Iterator[Layout]:
    """Yield every layout of `devices` devices that divides the model.

    All-to-all is among them where a token visits fewer parts than there are; otherwise it sends what all-gather does.
    """
    sparse, parts = bool(shape.num_experts), _divisors(devices)
    shared_parts = parts if shape.shared_expert_intermediate_size or not sparse else [1]
    for attention_tp, shared_tp, expert_ep in product(parts, shared_parts, parts if sparse else [1]):
        layout = Layout(
            attention_dp=devices // attention_tp,
            attention_tp=attention_tp,
            expert_tp=devices // expert_ep if sparse else 1,
            expert_ep=expert_ep,
            shared_tp=shared_tp,
        )
        if _fits(layout, shape):
            yield layout
            if sparse and expert_ep > shape.num_experts_per_tok:
                yield layout.derive(dispatch="all_to_all")


def _fits(layout: Layout, shape: ModelShape) -> bool:
    try:
        layout.check(shape)
    except UsageError:
        return False
    return True


def _device_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"layout: devices must be a positive whole number, got {text!r}")
    return int(text)


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _refused(name: str, value: int, reason: str) -> UsageError:
    return UsageError(f"layout: {name} {value} {reason}")
