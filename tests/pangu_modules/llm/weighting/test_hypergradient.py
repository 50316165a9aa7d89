"""Hypergradients: the engines against the exact one, a toy in float64 against finite differences of the whole thing."""

from __future__ import annotations

import pytest
import torch
from tiny_llm import tiny_module, token_batch
from torch import nn

from pangu_modules.llm.weighting.hypergradient import hypergradient
from pangu_modules.llm.weighting.model import weights
from pangu_modules.llm.weighting.preconditioning import next_step
from pangu_modules.llm.weighting.protocol import LossesOf

ENGINES = ("exact", "dot", "jvp", "fd")


class Toy(nn.Module):
    """A small network in float64 with a loss per row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def forward(self, batch):
        return (self.net(batch["x"]) - batch["y"]).square().sum(-1)


def toy_batch(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(size, 3, generator=generator, dtype=torch.float64),
        "y": torch.randn(size, 2, generator=generator, dtype=torch.float64),
    }


def language_model(dtype=torch.float32):
    module = tiny_module(attn_implementation="eager").to(dtype)
    losses_of = LossesOf(module)
    return losses_of, dict(losses_of.named_parameters())


def relative_error(value, reference):
    """Return the error of dL/ds, equation (3), which is what the weighting model learns from."""
    slopes = [(h - h.mean()) / len(h) for h in (value.double(), reference.double())]
    return float((slopes[0] - slopes[1]).norm() / slopes[1].norm())


def after_steps(losses_of, steps=3):
    optimizer = torch.optim.AdamW(losses_of.parameters(), lr=1e-3)
    for step in range(steps):
        losses_of(token_batch(8, seed=10 + step)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def outcome_after_a_step(toy, w, lr, factors=None):
    """Return L_val(theta'(w)) by plain arithmetic, for finite differences."""
    train, target = toy_batch(1), toy_batch(2)
    values = list(toy.parameters())
    gradients = torch.autograd.grad((w * toy(train)).sum(), values)
    moved = [value.detach() - lr * g * f for value, g, f in zip(values, gradients, factors or [1.0] * 4, strict=True)]
    hidden = torch.tanh(target["x"] @ moved[0].T + moved[1])
    return (hidden @ moved[2].T + moved[3] - target["y"]).square().sum(-1).mean()


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_toy_equals_finite_differences_of_the_whole(engine, preconditioned):
    toy, lr = Toy(), 0.1
    generator = torch.Generator().manual_seed(3)
    factors = [torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1 for p in toy.parameters()]
    w = torch.tensor([0.3, 0.1, 0.2, 0.05, 0.15, 0.2], dtype=torch.float64)
    found = hypergradient(
        toy,
        dict(toy.named_parameters()),
        toy_batch(1),
        toy_batch(2),
        w,
        lr=lr,
        engine=engine,
        fd_scale=1e-4,
        precondition=(lambda gradients: factors) if preconditioned else None,
    )
    used = factors if preconditioned else None
    slopes = []
    for index in range(6):
        move = torch.zeros(6, dtype=torch.float64)
        move[index] = 1e-5
        sides = [outcome_after_a_step(toy, w + sign * move, lr, used) for sign in (1, -1)]
        slopes.append((sides[0] - sides[1]) / 2e-5)
    expected = -torch.stack(slopes) / lr
    # differences of the reference: 2e-9 relative measured; those of fd at 1e-4: 3e-9
    torch.testing.assert_close(found.h, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.target_loss, outcome_after_a_step(toy, w, lr, used).detach())
