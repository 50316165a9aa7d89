"""MoGE's races: routed experts against the experts of transformers' OLMoE with the same weights and routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.races.race import Benchmark, Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN, INNER, EXPERTS, GROUPS, CHOSEN = 256, 128, 64, 8, 8
PREFILL = 1024  # tokens
DECODE = (1, 4, 16)
DECODE_CALLS = 20  # a measurement of decoding is the sum of this many calls
PREFILL_PATHS = ("grouped_mm", "eager")  # batched_mm copies an expert's weights for every row: 2 GB here
DECODE_PATHS = ("grouped_mm", "eager", "batched_mm")

GROUPED_TARGET = 1.2
EAGER_TARGET = 4.0
DENSE_TARGET = 1 / 1.15  # at most 15 % slower than dense products of as many operations
DECODE_TARGET = 1.0
# Relative difference of output and gradients, in float32 of another order of sums; seen 1e-6.
BOUND = 1e-5

SETUP = (
    f"Routed experts of width {INNER} on tokens of width {HIDDEN}: {EXPERTS} experts in {GROUPS} groups, {CHOSEN} "
    f"chosen by a MoGE router with random logits, {PREFILL} tokens (prefill) or 1 to 16 (decoding, without gradients), "
    "float32 on the CPU with all cores. The peer is the experts module of transformers' OLMoE, with the same weights, "
    "the same chosen experts and the same gates; outputs and gradients are compared first. Both begin with ids and "
    "gates, so that sorting, gathering and adding up are part of the time, the router is not."
)


def benchmark() -> Benchmark:
    """Return the races of MoGE's experts."""
    return Benchmark("MoGE: experts on sorted rows", SETUP, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    yield training_contest(PREFILL)
    yield dense_contest(PREFILL)
    for num_tokens in DECODE:
        yield decode_contest(num_tokens)


def training_contest(num_tokens: int) -> Contest:
    """Return the races of forward and backward against transformers' paths."""
    setting = Setting(num_tokens)
    ours = timed(setting.step(setting.ours))

    def race(path: str, target: float) -> Race:
        peer = timed(setting.step(setting.peer(path)))
        title = f"forward and backward of {num_tokens} tokens, {path}"
        return Race(f"step_{path}", title, ours, peer, f"transformers' {path}", target=target)

    forward = Race(
        "forward_grouped_mm",
        f"forward of {num_tokens} tokens, grouped_mm",
        timed(setting.forward(setting.ours)),
        timed(setting.forward(setting.peer("grouped_mm"))),
        "transformers' grouped_mm",
    )
    races = (race("grouped_mm", GROUPED_TARGET), race("eager", EAGER_TARGET), forward)
    what = "experts of MoGE and of OLMoE (output and gradients)"
    return Contest(what, lambda: (setting.difference(PREFILL_PATHS), BOUND), races)


def dense_contest(num_tokens: int) -> Contest:
    """Return the race of the forward pass against two dense products; the check is the number of operations."""
    setting = Setting(num_tokens)
    dense = setting.dense_products()

    def check() -> tuple[float, float]:
        return float(abs(operations(setting.forward(setting.loop)) - operations(dense))), 0

    races = (
        Race(
            "forward_dense",
            f"forward of {num_tokens} tokens, as many operations in two dense products",
            timed(setting.forward(setting.ours)),
            timed(dense),
            "dense products",
            target=DENSE_TARGET,
        ),
    )
    return Contest("routed and dense products (operations)", check, races)


def decode_contest(num_tokens: int) -> Contest:
    """Return the races of a few tokens without gradients against each of transformers' paths."""
    setting = Setting(num_tokens)

    def repeated(function: Callable[[], Any]) -> Callable[[], float]:
        return timed(lambda: [function() for _ in range(DECODE_CALLS)])

    races = tuple(
        Race(
            f"decode_{num_tokens}_{path}",
            f"{DECODE_CALLS} times {num_tokens} token{'s' if num_tokens > 1 else ''}, {path}",
            repeated(setting.forward(setting.ours)),
            repeated(setting.forward(setting.peer(path))),
            f"transformers' {path}",
            target=DECODE_TARGET,
        )
        for path in DECODE_PATHS
    )
    what = f"experts on {num_tokens} tokens (output and gradients)"
    return Contest(what, lambda: (setting.difference(DECODE_PATHS), BOUND), races)


class Setting:
    """One set of weights in both modules, with fixed tokens, ids and gates."""

    def __init__(self, num_tokens: int) -> None:
        import torch
        from transformers import OlmoeConfig
        from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

        from pangu_modules.llm.moge.experts import GroupedExperts
        from pangu_modules.llm.moge.routing import route_moge

        generator = torch.Generator().manual_seed(0)
        sizes: Any = {"hidden_size": HIDDEN, "num_experts": EXPERTS}
        self.ours = GroupedExperts(**sizes, intermediate_size=INNER, num_groups=GROUPS)
        self.olmoe: Any = OlmoeExperts(OlmoeConfig(**sizes, intermediate_size=INNER, num_experts_per_tok=CHOSEN))
        self.olmoe.load_state_dict(self.ours.state_dict())
        routing = route_moge(torch.randn(num_tokens, EXPERTS, generator=generator), GROUPS, CHOSEN)
        self.tokens = torch.randn(num_tokens, HIDDEN, generator=generator).requires_grad_()
        self.ids, self.gates = routing.expert_ids, routing.weights.requires_grad_()
        self.grad = torch.randn(num_tokens, HIDDEN, generator=generator)

    def peer(self, path: str) -> Callable[..., Tensor]:
        """Return OLMoE's experts on one of transformers' paths."""

        def run(*arguments: Tensor) -> Tensor:
            self.olmoe.config._experts_implementation = path
            output: Tensor = self.olmoe(*arguments)
            return output

        return run

    def loop(self, tokens: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
        """Compute our experts with plain products, which PyTorch's counter of operations knows."""
        from pangu_modules.llm.moge.experts import experts_forward

        weights = self.ours.gate_up_proj, self.ours.down_proj
        return experts_forward(tokens, ids, gates, *weights, implementation="loop")

    def leaves(self) -> list[Tensor]:
        """Return everything that receives a gradient: tokens, gates, and both modules' weights."""
        return [self.tokens, self.gates, *self.ours.parameters(), *self.olmoe.parameters()]

    def step(self, experts: Callable[..., Tensor]) -> Callable[[], None]:
        """Return forward and backward from cleared gradients."""

        def run() -> None:
            for leaf in self.leaves():
                leaf.grad = None
            experts(self.tokens, self.ids, self.gates).backward(self.grad)

        return run

    def forward(self, experts: Callable[..., Tensor]) -> Callable[[], None]:
        """Return the forward pass without gradients."""
        import torch

        def run() -> None:
            with torch.no_grad():
                experts(self.tokens, self.ids, self.gates)

        return run

    def dense_products(self) -> Callable[[], None]:
        """Return two products with dense weights of an expert's shape, for all rows at once."""
        import torch

        rows = len(self.ids) * CHOSEN
        tokens, inner = torch.randn(rows, HIDDEN), torch.randn(rows, INNER)
        gate_up, down = torch.randn(2 * INNER, HIDDEN), torch.randn(HIDDEN, INNER)

        def run() -> None:
            with torch.no_grad():
                torch.nn.functional.linear(tokens, gate_up)
                torch.nn.functional.linear(inner, down)

        return run

    def difference(self, paths: Sequence[str]) -> float:
        """Return the largest relative difference of output and gradients between ours and these paths of the peer."""
        ours = self.results(self.ours, self.ours)
        return max(
            relative(mine, theirs)
            for path in paths
            for mine, theirs in zip(ours, self.results(self.peer(path), self.olmoe), strict=True)
        )

    def results(self, experts: Callable[..., Tensor], module: Any) -> list[Tensor]:
        """Return output and gradients of tokens, gates and weights."""
        import torch

        output = experts(self.tokens, self.ids, self.gates)
        return [output, *torch.autograd.grad(output, [self.tokens, self.gates, *module.parameters()], self.grad)]


def relative(first: Tensor, second: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / second.abs().max())


def operations(function: Callable[[], Any]) -> int:
    """Return the operations of a call, a multiply-add counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
