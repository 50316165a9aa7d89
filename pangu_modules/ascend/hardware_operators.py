"""Measurements of fused operators for the hardware report: their numbers, their time, and a decoder's speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pangu_modules.ascend.availability import npu
from pangu_modules.ascend.ops.activations import SWIGLU
from pangu_modules.ascend.ops.attention import ATTENTION
from pangu_modules.ascend.ops.dispatch import fused_ops
from pangu_modules.ascend.ops.examples import Example, Maker
from pangu_modules.ascend.ops.losses import CROSS_ENTROPY
from pangu_modules.ascend.ops.norms import RMS_NORM
from pangu_modules.ascend.ops.rotary import ROTARY_MUL
from pangu_modules.ascend.ops.table import OPERATORS

REPEATS = 20


def compare_operators() -> list[dict[str, Any]]:
    """Compare each operator on the NPU with its reference on the CPU, for all of its examples and types.

    Returns:
        A row for each: whether it was fused (or why not), the largest absolute error and value of each output, and
        milliseconds with and without fusing.
    """
    return [
        row
        for name, operator in OPERATORS.items()
        for dtype in operator.dtypes
        for row in _compared(name, operator, dtype)
    ]


def _compared(name: str, operator: Any, dtype: torch.dtype) -> list[dict[str, Any]]:
    on_cpu = list(operator.examples(Maker(dtype)))
    on_npu = list(operator.examples(Maker(dtype, "npu")))
    return [
        {"operator": name, "example": ours.name, "dtype": str(dtype), **_row(operator, reference, ours)}
        for reference, ours in zip(on_cpu, on_npu, strict=True)
    ]


def _row(operator: Any, on_cpu: Example, on_npu: Example) -> dict[str, Any]:
    try:
        said = str(operator.explain(*on_npu.args, **on_npu.kwargs))
        wanted = _tensors(operator.reference(*_copies(on_cpu.args), **on_cpu.kwargs))
        got = _tensors(operator(*_copies(on_npu.args), **on_npu.kwargs))
        return {
            "explanation": said,
            "errors": [_error(ours, reference) for ours, reference in zip(got, wanted, strict=True)],
            "ms": _milliseconds(lambda: operator(*on_npu.args, **on_npu.kwargs)),
            "reference_ms": _milliseconds(lambda: operator.reference(*on_npu.args, **on_npu.kwargs)),
        }
    except Exception as error:  # an operator that fails is a finding
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def _copies(values: Any) -> list[Any]:
    """Return arguments that may be written to."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [value for value in outputs if isinstance(value, Tensor)]


def _error(ours: Tensor, reference: Tensor) -> dict[str, Any]:
    """Return how far an output on the NPU is from the CPU's; computed on the CPU in double precision."""
    got, wanted = ours.detach().cpu().double(), reference.detach().double()
    if got.shape != wanted.shape:
        return {"shapes": [list(got.shape), list(wanted.shape)]}
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    return {"largest_error": float((got - wanted).abs().max()) if wanted.numel() else 0.0, "largest_value": size}


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the time of a call, once it is warm."""
    for _ in range(3):
        call()
    npu().synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        call()
    npu().synchronize()
    return (time.perf_counter() - start) / REPEATS * 1000


@dataclass(frozen=True)
class Sizes:
    """Shapes of the decoder whose speed is measured."""

    num_layers: int = 4
    hidden_size: int = 2048
    num_heads: int = 16
    num_key_value_heads: int = 4
    intermediate_size: int = 5632
    vocab_size: int = 32_000
    sequence_length: int = 2048
    batch_size: int = 2
    steps: int = 10

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.hidden_size // self.num_heads


class Layer(nn.Module):
    """A decoder layer as language models have it, made of the operators that can be fused."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        heads = (sizes.num_heads, sizes.num_key_value_heads, sizes.num_key_value_heads)
        width = sizes.hidden_size
        self.norms = nn.ParameterList([torch.ones(width), torch.ones(width)])
        self.project = nn.ModuleList([nn.Linear(width, count * sizes.head_dim, bias=False) for count in heads])
        self.output = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * sizes.intermediate_size, bias=False)  # gate and up
        self.down = nn.Linear(sizes.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return (batch, sequence, hidden_size) of the same."""
        normed = RMS_NORM(x, self.norms[0])
        query, key, value = (
            project(normed).unflatten(-1, (-1, self.sizes.head_dim)).transpose(1, 2).contiguous()
            for project in self.project
        )
        query, key = ROTARY_MUL(query, cos, sin), ROTARY_MUL(key, cos, sin)
        seen = ATTENTION(query, key, value, self.sizes.head_dim**-0.5, "bottom_right")
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        return x + self.down(SWIGLU(self.up(RMS_NORM(x, self.norms[1]))))


def tokens_per_second(sizes: Sizes | None = None, device: str = "npu") -> dict[str, Any]:
    """Return tokens per second of training a bfloat16 decoder, fused and by the references, and their ratio."""
    sizes = sizes or Sizes()
    speeds: dict[str, Any] = {}
    for mode in ("off", "auto"):
        with fused_ops(mode):
            speeds["fused" if mode == "auto" else "reference"] = _speed(sizes, device)
    return {**speeds, "ratio": speeds["fused"] / speeds["reference"], "sizes": vars(sizes)}


def _speed(sizes: Sizes, device: str) -> float:
    torch.manual_seed(0)
    layers = nn.ModuleList([Layer(sizes) for _ in range(sizes.num_layers)]).to(device, torch.bfloat16)
    head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False).to(device, torch.bfloat16)
    optimizer = torch.optim.AdamW([*layers.parameters(), *head.parameters()], lr=1e-4)
    shape = (sizes.batch_size, sizes.sequence_length)
    x = torch.randn(*shape, sizes.hidden_size).to(device, torch.bfloat16)
    targets = torch.randint(sizes.vocab_size, shape).flatten().to(device)
    cos, sin = _rotary_tables(sizes, device)

    def step() -> None:
        hidden = x
        for layer in layers:
            hidden = layer(hidden, cos, sin)
        loss = CROSS_ENTROPY(head(hidden).flatten(0, 1).float(), targets)
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    npu().synchronize()
    start = time.perf_counter()
    for _ in range(sizes.steps):
        step()
    npu().synchronize()
    return sizes.steps * targets.numel() / (time.perf_counter() - start)


def _rotary_tables(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (1, 1, sequence, head_dim); of the CPU, in float32: NPUs have no double precision."""
    positions = torch.arange(sizes.sequence_length, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(0, sizes.head_dim, 2, dtype=torch.float32) / sizes.head_dim)
    angles = torch.outer(positions, frequencies).repeat(1, 2)[None, None]
    return angles.cos().to(device, torch.bfloat16), angles.sin().to(device, torch.bfloat16)
