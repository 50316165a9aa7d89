"""The races of one-bit weights: products from packed bits, a training step, decoding, memory and size of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

from benchmarks.methods.onebit.speed_model import model_contest, size_contest
from benchmarks.methods.onebit.speed_training import layer_contest, step_contest
from benchmarks.races.race import Benchmark, Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

# (out, in) of every layer of SmolLM2-135M, and one of a 7B model.
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (4096, 4096))
ROTATION = 64e6
"""Bytes of weights that a race goes through before it comes back to the first: more than a cache holds."""
TARGET = 1.5
PRODUCTS = 5e7
"""Weights that one measurement of a layer multiplies with, about 10 ms of float32."""
SETUP = (
    "On the CPU with all cores. Layers: one token through a packed layer, by the compiled kernel and with all that "
    "Python adds, against a linear layer of PyTorch with the same weights; both sides go through copies of the weights "
    f"that take {ROTATION / 1e6:.0f} MB together, so that they come from memory, as in a model. Training: a whole step "
    "(forward, backward, AdamW) of a Llama at 1024 tokens with the progressive function in mid-schedule against the "
    "same Llama with plain layers. Model: SmolLM2-135M in float32, signs instead of weights, packed (its embedding, "
    "28 of 134 million weights, stays dense) against the same model with dense weights; peak memory is the resident "
    "memory of a process of its own that loads the model from its folder and generates, less what Python and its "
    "libraries take before."
)


def benchmark() -> Benchmark:
    """Return the races of one-bit weights."""
    return Benchmark("One-bit weights: products from bits, training, decoding, memory", SETUP, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    for out_features, in_features in SHAPES:
        yield decode_contest(out_features, in_features)
    yield layer_contest()
    yield step_contest("small", "a Llama of 4 blocks of width 288", SMALL)
    yield step_contest("smollm2", "a Llama of 2 blocks of SmolLM2's shapes", SMOLLM2_BLOCKS)
    yield model_contest()
    yield size_contest()


SMALL = {
    "vocab_size": 2048,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SMOLLM2_BLOCKS = {
    "vocab_size": 2048,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def decode_contest(out_features: int, in_features: int) -> Contest:
    """Return the races of one token through a packed layer against dense layers in float32 and bfloat16."""
    import torch
    from torch import nn

    from pangu_modules.llm.onebit.packed_linear import PackedBinaryLinear

    linear = binary_linear(out_features, in_features)
    packed = PackedBinaryLinear.from_linear(linear)
    x = torch.randn(1, in_features, generator=torch.Generator().manual_seed(0))
    half = nn.Linear(in_features, out_features, bias=False, dtype=torch.bfloat16)
    shape = f"{out_features}x{in_features}"

    def check() -> tuple[float, float]:
        with torch.no_grad():
            difference = (packed(x) - linear(x)).abs().max() / linear(x).abs().max()
        return float(difference), 1e-5  # two orders of summation in float32; seen 1e-6

    ours = microseconds(copies_of(packed), x)
    races = (
        Race(
            f"decode_{shape}",
            f"one token through a layer of {shape}",
            ours,
            microseconds(copies_of(linear), x),
            "F.linear in float32",
            unit="us",
            target=TARGET,
        ),
        Race(
            f"decode_{shape}_bf16",
            f"one token through a layer of {shape}",
            ours,
            microseconds(copies_of(half), x.bfloat16()),
            "F.linear in bfloat16",
            unit="us",
        ),
    )
    return Contest(f"packed and dense layer of {shape}", check, races)


def binary_linear(out_features: int, in_features: int) -> nn.Linear:
    """Return a layer with random signs and a scale for each row."""
    import torch
    from torch import nn

    torch.manual_seed(out_features)
    linear = nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        scale = linear.weight.abs().mean(1, keepdim=True)
        linear.weight.copy_(torch.where(linear.weight >= 0, scale, -scale))
    return linear


def copies_of(layer: nn.Module) -> list[nn.Module]:
    """Return as many copies of a layer as take `ROTATION` bytes, at least two."""
    import copy

    size = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
    return [copy.deepcopy(layer) for _ in range(max(2, round(ROTATION / size)))]


def microseconds(layers: Sequence[nn.Module], x: Tensor) -> Callable[[], float]:
    """Return a measurement: the time of one forward, over many that go through the layers in turn."""
    import torch

    calls = max(20, round(PRODUCTS / out_times_in(layers[0])))
    turns = cycle(layers)

    def forward() -> None:
        with torch.no_grad():
            for layer in islice(turns, calls):
                layer(x)

    measure = timed(forward)
    return lambda: 1e6 * measure() / calls


def out_times_in(layer: nn.Module) -> int:
    """Return the number of weights of a layer."""
    return int(layer.in_features) * int(layer.out_features)  # type: ignore[arg-type]
