"""Ascend's races, on a CPU: what dispatch costs a call, and fused models off the NPU against transformers' modules."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.methods.ascend import prediction
from benchmarks.races.race import Benchmark, Contest, Race
from pangu_modules.report.tables import terminal_table
from pangu_modules.simulator.hardware import find_card

if TYPE_CHECKING:
    from torch import Tensor, nn

ALLOWED_SECONDS = 5e-6  # that dispatch may add to a call
CALLS = 2000  # a measurement of dispatch is the sum of this many calls
SLOWDOWN = 1.05  # at most, of a fused module off the NPU
TOKENS = 128
FEW = 48
STEPS = {  # a measurement is the sum of this many passes
    "rotary": 200,
    "attention": 10,
    "RMSNorm": 1000,
    "MLP": 4,
    "layer": 2,
    "model": 1,
}
SIZES: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 256,
}

SETUP = (
    "On a CPU, in float32 and CPU seconds of one thread; nothing here is measured on an NPU. Dispatch is timed on "
    "small "
    "tensors. Its peer is the reference, or for calls that are fused an empty function in place of torch_npu's, called "
    f"directly, plus {1e6 * ALLOWED_SECONDS:.0f} microseconds a call, so that 1 is the bound. The modules are those of "
    f"a Llama with SmolLM2-135M's widths and {TOKENS} tokens, after `fuse` and as transformers has them, with the same "
    "weights; their outputs must be equal bit by bit first."
)


def benchmark() -> Benchmark:
    """Return the races of the operators off the NPU."""
    return Benchmark("Ascend: operators on other devices", SETUP, contests())


def contests() -> Iterator[Contest]:
    """Print the predictions for the NPU, and build the contests one at a time; torch has one thread from here on."""
    import torch

    title = f"Predictions of a roofline for the {find_card(prediction.CARD).title}, not measurements"
    terminal_table(prediction.rows(), title=title)
    torch.set_num_threads(1)
    for name in ("rms_norm", "rotary_mul", "gated_silu", "infer_attention"):
        yield dispatch_contest(name)
        yield decision_contest(name)
    yield from module_contests()


def dispatch_contest(name: str) -> Contest:
    """Return the race of an operator's call against its reference and the allowance."""
    import torch

    from pangu_modules.ascend.ops import OPERATORS
    from pangu_modules.ascend.ops.examples import Maker

    operator = OPERATORS[name]
    example = next(iter(operator.examples(Maker(torch.float32))))

    def ours() -> None:
        for _ in range(CALLS):
            operator(*example.args, **example.kwargs)

    def reference() -> None:
        for _ in range(CALLS):
            operator.reference(*example.args, **example.kwargs)

    def peer() -> float:
        return cpu_timed(reference)() + CALLS * ALLOWED_SECONDS

    def check() -> tuple[float, float]:
        one, other = (f(*example.args, **example.kwargs) for f in (operator, operator.reference))
        return largest_difference(one, other), 0

    title = f"{CALLS} calls of {name}"
    return Contest(
        name, check, (Race(f"dispatch_{name}", title, cpu_timed(ours), peer, "reference + 5 us", target=1.0),)
    )


def decision_contest(name: str) -> Contest:
    """Return the race of a call that is fused, by a library that does nothing, against that library's own call."""
    import torch

    from pangu_modules.ascend.ops import OPERATORS, dispatch
    from pangu_modules.ascend.ops.examples import Maker

    operator = OPERATORS[name]
    example = next(iter(operator.examples(Maker(torch.bfloat16))))
    empty = _Empty()
    function = getattr(empty, operator.symbol)

    def ours() -> None:
        before = dispatch.SETTINGS.library, dispatch.SETTINGS.device_type
        dispatch.SETTINGS.library, dispatch.SETTINGS.device_type = empty, "cpu"
        for _ in range(CALLS):
            operator(*example.args, **example.kwargs)
        dispatch.SETTINGS.library, dispatch.SETTINGS.device_type = before

    def direct() -> None:
        for _ in range(CALLS):
            call = operator.call(*example.args, **example.kwargs)
            function(*call.args, **call.kwargs)

    def peer() -> float:
        return cpu_timed(direct)() + CALLS * ALLOWED_SECONDS

    def check() -> tuple[float, float]:
        before = empty.calls
        ours()
        return float(abs(empty.calls - before - CALLS)), 0

    title = f"{CALLS} calls of {name} that are fused, by an empty function"
    race = Race(f"decision_{name}", title, cpu_timed(ours), peer, "the function + 5 us", target=1.0)
    return Contest(f"decision of {name}", check, (race,))


class _Empty:
    """A library whose functions do nothing, and count their calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.outputs = (None, None, None)

    def __getattr__(self, symbol: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.outputs

        setattr(self, symbol, function)
        return function


def module_contests() -> Iterator[Contest]:
    """Yield the races of fused modules against transformers' own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    from pangu_modules.ascend.ops.fusing import fuse

    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SIZES))
    fused = copy.deepcopy(plain)
    fuse(fused)
    rotate: Any = modeling_llama.apply_rotary_pos_emb
    x = torch.randn(1, TOKENS, SIZES["hidden_size"])
    places = plain.model.rotary_emb(x, torch.arange(TOKENS)[None])
    ids = torch.randint(0, SIZES["vocab_size"], (1, TOKENS))
    layers = (fused.model.layers[0], plain.model.layers[0])
    heads = torch.randn(2, 1, SIZES["num_attention_heads"], TOKENS, places[0].shape[-1])
    yield module_contest("rotary", *(rotation(f, heads, places) for f in (rotate, rotate.not_fused)))
    yield module_contest("attention", *(step(layer.self_attn, x, position_embeddings=places) for layer in layers))
    few = x[:, :FEW]  # larger ones are mapped and unmapped at each step, which takes longer than the norm
    yield module_contest("RMSNorm", *(step(layer.input_layernorm, few) for layer in layers))
    yield module_contest("MLP", *(step(layer.mlp, x) for layer in layers))
    yield module_contest("layer", *(step(layer, x, position_embeddings=places) for layer in layers))
    yield module_contest("model", *(step(model, ids, use_cache=False) for model in (fused, plain)))


def cpu_timed(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a measurement: one call of `function`, in CPU seconds, which other processes do not change."""

    def measure() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return measure


def step(module: nn.Module, x: Tensor, **kwargs: Any) -> Callable[[], Tensor]:
    """Return a forward and backward pass that returns the output."""

    def run() -> Tensor:
        module.zero_grad()
        found = module(x, **kwargs)
        output: Tensor = found[0] if isinstance(found, tuple) else getattr(found, "logits", found)
        output.sum().backward()
        return output.detach()

    return run


def rotation(function: Callable[..., Any], heads: Tensor, places: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """Return a rotation of queries and keys, without gradients, that returns the queries."""
    return lambda: function(*heads, *places)[0]


def module_contest(name: str, ours: Callable[[], Tensor], peer: Callable[[], Tensor]) -> Contest:
    """Return the race of a module's step."""

    def several(function: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [function() for _ in range(STEPS[name])]

    race = Race(
        f"step_{name}",
        f"{'rotary function' if name == 'rotary' else f'forward and backward of {name}'}, "
        f"{FEW if name == 'RMSNorm' else TOKENS} tokens",
        cpu_timed(several(ours)),
        cpu_timed(several(peer)),
        "transformers' module",
        target=1 / SLOWDOWN,
    )
    return Contest(name, lambda: (largest_difference(ours(), peer()), 0), (race,))


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two tensors' entries."""
    return float((one - other).abs().max())
