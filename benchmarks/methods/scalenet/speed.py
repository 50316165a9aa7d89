"""ScaleNet's races: a model of twice the depth with shared weights against a plain timm model of that depth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.races.lightning_step import lightning_contest
from benchmarks.races.race import Benchmark, Contest, Race, timed
from pangu_modules.common.parameters import count_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = 12
STEP_TARGET = 1 / 1.08  # at most 8 % slower
MEMORY_TARGET = 1 / 0.6  # at most 0.6 of the memory
EXPANSION_LIMIT = 2.0  # seconds
# Relative difference of loss and gradients; seen: 0 at every size, the same operations on the same numbers.
BOUND = 1e-6

SETUP = (
    "Twice the depth of DeiT by ScaleNet (24 blocks, 12 of them registered, adapters on attention and MLP of all) "
    "against timm's model with 24 blocks of its own, on the CPU in float32 with all cores. Both start from the same "
    "function; loss and gradients are compared first (a shared weight's gradient with the sum of its copies'). "
    "At the small batches of this race the optimizer weighs more than in training, and its work is halved: therefore "
    "forward and backward are reported without it."
)


@dataclass(frozen=True)
class Size:
    """A model to double: timm's name and arguments, adapter rank, batch size and image shape."""

    name: str
    title: str
    backbone: str
    rank: int
    batch_size: int
    image: tuple[int, int, int] = (3, 224, 224)
    arguments: tuple[tuple[str, Any], ...] = ()
    target: float | None = STEP_TARGET


DIGITS = (
    ("img_size", 28),
    ("patch_size", 7),
    ("in_chans", 1),
    ("embed_dim", 64),
    ("num_heads", 4),
    ("num_classes", 10),
)
SIZES = (
    Size("digits", "width 64", "vit_tiny_patch16_224", 8, 64, (1, 28, 28), DIGITS, target=None),
    Size("deit_s", "DeiT-S", "deit_small_patch16_224", 16, 4),
    Size("deit_b", "DeiT-B", "deit_base_patch16_224", 32, 2),
)


def benchmark() -> Benchmark:
    """Return the races of ScaleNet."""
    return Benchmark("ScaleNet: what sharing costs and saves", SETUP, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    yield lightning_contest()
    yield expansion_contest()
    for size in SIZES:
        yield depth_contest(size)


def depth_contest(size: Size) -> Contest:
    """Return the races of the expanded model against the plain one of the same depth."""
    ours, peer = sides(size)
    peer_name = f"{2 * BLOCKS} unshared blocks"
    races = (
        Race(
            f"step_{size.name}",
            f"training step at {size.title}, batch {size.batch_size}",
            timed(ours.step),
            timed(peer.step),
            peer_name,
            target=size.target,
        ),
        Race(
            f"gradients_{size.name}",
            f"forward and backward at {size.title}, without the optimizer",
            timed(ours.gradients),
            timed(peer.gradients),
            peer_name,
        ),
        Race(
            f"memory_{size.name}",
            f"parameters, gradients and optimizer state at {size.title}",
            ours.megabytes,
            peer.megabytes,
            peer_name,
            unit="MB",
            target=MEMORY_TARGET if size.target else None,
            exact=True,
        ),
    )
    return Contest(f"depth at {size.title}", lambda: (largest_difference(ours, peer), BOUND), races)


def sides(size: Size) -> tuple[Trainee, Trainee]:
    """Return the expanded model and the plain one with the same function."""
    ours, peer = Trainee(expanded(size), size), Trainee(plain(size), size)
    peer.model.load_state_dict(unshared_state(ours.model, peer.model))
    return ours, peer


def expansion_contest() -> Contest:
    """Return the race of DeiT-B's expansion against its time limit; the check is the parameter count."""
    from pangu_modules.vision.scalenet.config import ScaleNetConfig
    from pangu_modules.vision.scalenet.expansion import expand_depth

    size = next(size for size in SIZES if size.name == "deit_b")
    base = plain(size, depth=BLOCKS)
    config = ScaleNetConfig(depth_factor=2, adapter_rank=size.rank)

    def measure() -> float:
        model = copy.deepcopy(base)
        return timed(lambda: expand_depth(model, config))()

    def check() -> tuple[float, float]:
        model = expand_depth(copy.deepcopy(base), config)
        return abs(count_parameters(model) - 89_002_216), 0

    limit = Race(
        "expansion_deit_b",
        "expanding DeiT-B from 12 to 24 blocks",
        measure,
        lambda: EXPANSION_LIMIT,
        f"the limit of {EXPANSION_LIMIT:g} s",
        target=1.0,
    )
    return Contest("expansion of DeiT-B (parameters)", check, (limit,))


class Trainee:
    """A model with its optimizer, on one fixed batch of random images."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.model = model.train()
        self.images = torch.randn(size.batch_size, *size.image, generator=generator)
        self.labels = torch.randint(0, 10, (size.batch_size,), generator=generator)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def gradients(self) -> Tensor:
        """Run forward and backward from cleared gradients and return the loss."""
        from torch.nn.functional import cross_entropy

        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """Make one training step."""
        self.gradients()
        self.optimizer.step()

    def megabytes(self) -> float:
        """Return the memory of parameters, gradients and optimizer state, from their tensors, in 10^6 bytes."""
        import torch

        if not self.optimizer.state:
            self.step()
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [tensor for tensor in [*parameters, *gradients, *states] if isinstance(tensor, torch.Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values()) / 1e6


def plain(size: Size, depth: int = 2 * BLOCKS) -> nn.Module:
    """Return timm's model with blocks of its own."""
    import timm

    model: nn.Module = timm.create_model(size.backbone, depth=depth, **dict(size.arguments))
    return model


def expanded(size: Size) -> nn.Module:
    """Return the base expanded to twice its depth; its adapters add nothing yet."""
    from pangu_modules.vision.scalenet.config import ScaleNetConfig
    from pangu_modules.vision.scalenet.expansion import expand_depth

    return expand_depth(plain(size, depth=BLOCKS), ScaleNetConfig(depth_factor=2, adapter_rank=size.rank))


def unshared_state(shared: nn.Module, plain_model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with which the plain model computes what the expanded one does before training."""
    state = shared.state_dict()
    return {name: state[shared_name(name)] for name in plain_model.state_dict()}


def shared_name(name: str) -> str:
    """Return where the expanded model keeps the weight that the plain model has as `name`."""
    parts = name.split(".")
    if parts[0] == "blocks" and parts[2] in ("attn", "mlp"):
        return ".".join(["blocks", str(int(parts[1]) % BLOCKS), parts[2], "module", *parts[3:]])
    return name


def largest_difference(ours: Trainee, peer: Trainee) -> float:
    """Return the largest difference of loss and gradients between both sides, gradients relative to the largest."""
    import torch

    losses = ours.gradients(), peer.gradients()
    gradients = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    expected: dict[str, Any] = {}
    for name, parameter in peer.model.named_parameters():
        owner = shared_name(name)
        expected[owner] = expected[owner] + parameter.grad if owner in expected else parameter.grad
    largest = torch.stack([gradient.abs().max() for gradient in expected.values()]).max()
    differences = [(gradients[name] - gradient).abs().max() / largest for name, gradient in expected.items()]
    return torch.stack([(losses[0] - losses[1]).abs(), *differences]).max().item()
