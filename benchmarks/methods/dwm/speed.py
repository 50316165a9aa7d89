"""The races of DWM: an update against a training step, training as a whole, memory, and an unrolling peer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.methods.dwm.peers import torchopt_slopes, unrolled_slopes
from benchmarks.methods.pruning.speed import resident
from benchmarks.races.race import Benchmark, Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pangu_modules.llm.weighting.hypergradient import Engine

BATCH, LENGTH, TARGET_BATCH = 8, 64, 8
LLAMA = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
}
STEPS_PER_UPDATE = 18  # 200 updates in each of 4 rounds, 14,305 steps of 2048 x 1024 tokens: 30 B tokens
AMORTIZED_TARGET = 1 / 1.3
MEMORY_TARGET = 1 / 2.2
# Relative error of h against the engine exact, in float32; measured: 3e-6 for dot and jvp, 1e-2 for fd.
BOUNDS: dict[Engine, float] = {"fd": 3e-2, "jvp": 1e-4, "dot": 1e-4, "exact": 0.0}
SETUP = (
    "A Llama of 4 layers, width 256 and 2048 tokens in float32 on the CPU with all cores, batches of "
    f"{BATCH} x {LENGTH} tokens, AdamW, targets of {TARGET_BATCH} sequences; the weighting model has one layer of "
    "width 64 over the tokens and one over the batch. A plain step is forward pass, backward pass and optimizer; an "
    "update of the weighting model is all of it: weights, virtual step with AdamW's moments, the target's gradient, "
    "the engine, the step of its own optimizer; its multiple of a plain step is 1 / ratio. Engines are raced with "
    "eager attention, which exact and jvp need. Peak memory is the resident memory of a process of its own that trains "
    "a model of width 512, less what it took before the model was built."
)


def benchmark() -> Benchmark:
    """Return the races of DWM; without TorchOpt a plain unroll is the peer, and the setup says so."""
    peer = (
        " The peer's hypergradient is TorchOpt's MetaSGD, one differentiable step of SGD."
        if importlib.util.find_spec("torchopt") is not None
        else " TorchOpt is not installed: the peer's hypergradient is a plain functional unroll of one step of SGD."
    )
    title = "DWM: an update against a training step, overhead, memory, and a differentiated step"
    return Benchmark(title, SETUP + peer, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    for engine in ("fd", "jvp", "dot", "exact"):
        yield engine_contest(engine)
    yield amortized_contest()
    yield peer_contest()
    yield memory_contest()


@dataclass
class Run:
    """A language model in training, its batches, and a weighting model."""

    module: Any
    losses_of: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    weighting: Any
    weighting_optimizer: Any
    train: dict[str, Tensor]
    target: dict[str, Tensor]

    def step(self, weighted: bool = False) -> None:
        """Take a plain training step, or one with the weighting model's weights."""
        import torch

        from pangu_modules.llm.weighting.update import weigh
        from pangu_modules.training.objectives import weighted_mean

        weight = None
        if weighted:
            with torch.no_grad():
                weight = weigh(self.weighting, self.train).sample_weight
        self.optimizer.zero_grad()
        weighted_mean(self.losses_of(self.train), weight).backward()
        self.optimizer.step()

    def update(self, engine: Engine) -> None:
        """Update the weighting model once."""
        from pangu_modules.llm.weighting.hypergradient import Lookahead
        from pangu_modules.llm.weighting.preconditioning import next_step
        from pangu_modules.llm.weighting.update import UpdateSettings, update_weighting_model

        step = next_step(self.optimizer, list(self.parameters.values()))
        ahead = Lookahead(self.losses_of, self.parameters, self.train, self.target, step.lr, step.precondition)
        update_weighting_model(self.weighting, self.weighting_optimizer, ahead, UpdateSettings(engine=engine))


def new_run(attention: str = "sdpa", **sizes: int) -> Run:
    """Return a run after its first step, so that the optimizer has moments."""
    import torch

    from pangu_modules import CausalLM, DataWeightingModel
    from pangu_modules.llm.weighting.protocol import LossesOf

    torch.manual_seed(0)
    model_args = {**LLAMA, **sizes}
    module = CausalLM.Config(architecture="llama", model_args=model_args, attn_implementation=attention).build()
    losses_of = LossesOf(module)
    vocabulary = model_args["vocab_size"]
    weighting = DataWeightingModel.Config(hidden_size=64, num_layers=1, vocab_size=vocabulary).build()
    torch.nn.init.normal_(weighting.output.weight)  # weights that differ, as after some updates
    run = Run(
        module,
        losses_of,
        dict(losses_of.named_parameters()),
        torch.optim.AdamW(module.parameters(), lr=1e-3),
        weighting,
        torch.optim.AdamW(weighting.parameters(), lr=1e-3),
        {"input_ids": torch.randint(vocabulary, (BATCH, LENGTH))},
        {"input_ids": torch.randint(vocabulary, (TARGET_BATCH, LENGTH))},
    )
    run.step()
    return run


def engine_contest(engine: Engine) -> Contest:
    """Return the race of an update by one engine against a plain step."""
    run = new_run("eager")

    def check() -> tuple[float, float]:
        from pangu_modules.llm.weighting.hypergradient import Lookahead, hypergradient
        from pangu_modules.llm.weighting.preconditioning import next_step
        from pangu_modules.llm.weighting.update import weigh

        step = next_step(run.optimizer, list(run.parameters.values()))
        ahead = Lookahead(run.losses_of, run.parameters, run.train, run.target, step.lr, step.precondition)
        own = weigh(run.weighting, run.train).own.detach()
        found, exact = (hypergradient(ahead, own, engine=name).h for name in (engine, "exact"))
        return float((found - exact).norm() / exact.norm()), BOUNDS[engine]

    title = f"an update of the weighting model, engine {engine}"
    race = Race(f"update_{engine}", title, timed(lambda: run.update(engine)), timed(run.step), "a plain training step")
    return Contest(f"engine {engine} and exact (h)", check, (race,))


def amortized_contest() -> Contest:
    """Return the race of training with weights and updates, as often as in the paper's setting, against without."""
    ours, peer = new_run(), new_run()

    def weighted() -> None:
        ours.update("fd")
        for _ in range(STEPS_PER_UPDATE):
            ours.step(weighted=True)

    def plain() -> None:
        for _ in range(STEPS_PER_UPDATE):
            peer.step()

    def check() -> tuple[float, float]:
        import torch

        first, second = new_run(), new_run()
        torch.nn.init.zeros_(first.weighting.output.weight)  # uniform weights: the steps are the plain ones
        first.step(weighted=True)
        second.step()
        pairs = zip(first.parameters.values(), second.parameters.values(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs), 1e-6

    race = Race(
        "amortized",
        f"{STEPS_PER_UPDATE} weighted steps and one update (fd), the frequency of 800 updates in 14,305 steps",
        timed(weighted),
        timed(plain),
        "the same steps without weights",
        target=AMORTIZED_TARGET,
    )
    return Contest("steps with uniform weights and plain ones (weights after it)", check, (race,))


def peer_contest() -> Contest:
    """Return the race of the weighting model's gradient by fd against differentiating through a step of SGD."""
    run = new_run("eager")
    with_torchopt = importlib.util.find_spec("torchopt") is not None
    slopes: Callable[..., list[Tensor]] = torchopt_slopes if with_torchopt else unrolled_slopes
    name = "TorchOpt's MetaSGD" if with_torchopt else "a plain functional unroll"
    arguments = run.weighting, run.module, run.losses_of, run.train, run.target

    def check() -> tuple[float, float]:
        import torch

        found, expected = (
            torch.cat([slope.flatten() for slope in side]) for side in (own_slopes(run), slopes(*arguments, lr=1e-3))
        )
        return float((found - expected).norm() / expected.norm()), BOUNDS["fd"]

    race = Race(
        "hypergradient",
        "the weighting model's gradient through one step of SGD, engine fd",
        timed(lambda: own_slopes(run)),
        timed(lambda: slopes(*arguments, lr=1e-3)),
        name,
    )
    return Contest(f"engine fd and {name} (gradient of the weighting model)", check, (race,))


def own_slopes(run: Run) -> list[Tensor]:
    """Return d L_val(theta') / d phi of the weighting model's parameters for a step of SGD, by engine fd."""
    import torch

    from pangu_modules.llm.weighting.hypergradient import Lookahead, hypergradient
    from pangu_modules.llm.weighting.update import weigh

    own = weigh(run.weighting, run.train).own
    h = hypergradient(Lookahead(run.losses_of, run.parameters, run.train, run.target, lr=1e-3), own.detach()).h
    return list(torch.autograd.grad(-1e-3 * (own * h).sum(), list(run.weighting.parameters())))


def memory_contest() -> Contest:
    """Return the races of peak memory, each side in a process of its own."""
    plain = measure_child("")

    def race(engine: Engine, target: float | None) -> Race:
        return Race(
            f"memory_{engine}",
            f"peak memory of training with updates, engine {engine}",
            lambda: measure_child(engine),
            lambda: plain,
            "plain training",
            unit="MB",
            target=target,
            exact=True,
        )

    # The same steps are checked by the contests before; here only memory differs.
    return Contest(
        "training with updates and without", lambda: (0.0, 0.0), (race("fd", MEMORY_TARGET), race("exact", None))
    )


def measure_child(engine: str) -> float:
    """Return `peak_megabytes`, measured in a new process."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_megabytes, (engine,))


def peak_megabytes(engine: str) -> float:
    """Train two steps, with an update between them if there is an engine; return the most memory it took, in MB."""
    new_run("eager", hidden_size=64, num_hidden_layers=1).update("fd")  # what libraries take once
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    run: Any = new_run("eager", hidden_size=512, intermediate_size=1408)
    if engine:
        run.update(engine)
    run.step()
    return resident("VmHWM") - before
