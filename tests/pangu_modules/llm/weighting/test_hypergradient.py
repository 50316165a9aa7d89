"""Hypergradients: the engines against the exact one, a toy in float64 against finite differences of the whole thing."""

from __future__ import annotations

import pytest
import torch
from tiny_llm import tiny_module, token_batch
from torch import nn

from pangu_modules.llm.weighting.hypergradient import Lookahead, check_engine, hypergradient
from pangu_modules.llm.weighting.model import weights
from pangu_modules.llm.weighting.preconditioning import next_step
from pangu_modules.llm.weighting.protocol import LossesOf
from pangu_modules.training.processes import Processes

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


def h_of(losses_of, parameters, train, target, w, *, lr, precondition=None, **options):
    return hypergradient(Lookahead(losses_of, parameters, train, target, lr, precondition), w, **options)


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
    found = h_of(
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


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("kind", ["none", "adam"])
def test_engines_agree_on_a_llama(kind):
    for dtype, bounds in (
        # Llama's norms and rotations compute in float32 whatever its type: 6e-8 to 2e-7 measured for dot and jvp.
        (torch.float64, {"dot": 1e-6, "jvp": 1e-6, "fd": 1e-2}),
        # measured: 5e-7 to 1.5e-6; the difference of two float32 losses 1e-4 to 6e-4
        (torch.float32, {"dot": 1e-5, "jvp": 1e-5, "fd": 1e-2}),
    ):
        losses_of, parameters = language_model(dtype)
        step = next_step(after_steps(losses_of), list(parameters.values()), kind)
        assert step.uses_moments == (kind == "adam")
        w = weights(torch.tensor([0.5, -1.0, 0.2, 0.0, 1.0, -0.3, 0.1, 0.4])).to(dtype)
        found = {
            engine: h_of(
                losses_of,
                parameters,
                token_batch(8, seed=1),
                token_batch(4, seed=2),
                w,
                lr=step.lr,
                precondition=step.precondition,
                engine=engine,
            ).h
            for engine in ENGINES
        }
        for engine, bound in bounds.items():
            assert relative_error(found[engine], found["exact"]) < bound, (engine, dtype)
            assert relative(found[engine], found["exact"]) < bound


def test_toy_engines_agree_in_float64():
    toy = Toy()
    w = torch.full((6,), 1 / 6, dtype=torch.float64)
    arguments = toy, dict(toy.named_parameters()), toy_batch(1), toy_batch(2), w
    exact, dot, jvp = (h_of(*arguments, lr=0.1, engine=engine).h for engine in ("exact", "dot", "jvp"))
    # measured: 2e-16
    assert relative(dot, exact) < 1e-10
    assert relative(jvp, exact) < 1e-10
    fd = [h_of(*arguments, lr=0.1, engine="fd", fd_scale=scale).h for scale in (1e-1, 1e-2, 1e-3)]
    errors = [relative(h, exact) for h in fd]
    assert errors[1] < errors[0] / 50  # central differences: a tenth of the step, a hundredth of the error
    assert errors[2] < errors[1] / 50


def test_softmax_slope_is_equation_3():
    """Autograd through weights, step and target loss gives -lr w_j (h_j - sum_i w_i h_i) for the score s_j."""
    toy, lr = Toy(), 0.1
    s = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    w = weights(s)
    (slope,) = torch.autograd.grad(outcome_of(toy, w, lr), s)
    w = w.detach()
    h = h_of(toy, dict(toy.named_parameters()), toy_batch(1), toy_batch(2), w, lr=lr, engine="dot").h
    torch.testing.assert_close(slope, -lr * w * (h - w @ h), rtol=1e-10, atol=1e-14)  # measured: 2e-15 relative
    # and the surrogate's slope is the same but for the factor lr
    (surrogate,) = torch.autograd.grad(-(weights(s) * h).sum(), s)
    torch.testing.assert_close(lr * surrogate, slope, rtol=1e-10, atol=1e-14)


def outcome_of(toy, w, lr):
    """Return L_val(theta'(w)), differentiable in w."""
    values = list(toy.parameters())
    gradients = torch.autograd.grad((w * toy(toy_batch(1))).sum(), values, create_graph=True)
    names = [name for name, _ in toy.named_parameters()]
    moved = {name: value - lr * g for name, value, g in zip(names, values, gradients, strict=True)}
    return torch.func.functional_call(toy, moved, (toy_batch(2),)).mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_model_mode_gradients_and_random_numbers_stay(engine):
    module = tiny_module(attn_implementation="eager", model_args={"attention_dropout": 0.5})
    module.model.model.layers[1].eval()
    losses_of = LossesOf(module)
    losses_of(token_batch(4)).sum().backward()
    before = {name: (value.detach().clone(), value.grad.clone()) for name, value in module.named_parameters()}
    modes = [part.training for part in module.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    arguments = losses_of, dict(losses_of.named_parameters()), token_batch(4, seed=1), token_batch(2, seed=2)
    first = h_of(*arguments, torch.full((4,), 0.25), lr=0.1, engine=engine)
    second = h_of(*arguments, torch.full((4,), 0.25), lr=0.1, engine=engine)
    assert torch.equal(first.h, second.h)  # no dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name][0]), name
        assert torch.equal(value.grad, before[name][1]), name


def test_model_is_restored_after_an_error():
    class Breaks(Toy):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 4:  # the second of the displaced passes
                raise ZeroDivisionError
            return super().forward(batch)

    toy = Breaks()
    before = [value.clone() for value in toy.parameters()]
    with pytest.raises(ZeroDivisionError):
        h_of(toy, dict(toy.named_parameters()), toy_batch(1), toy_batch(2), torch.full((6,), 1 / 6), lr=0.1)
    assert all(torch.equal(value, old) for value, old in zip(toy.parameters(), before, strict=True))


def test_fd_works_with_fused_attention_and_checkpointing():
    plain = LossesOf(tiny_module(attn_implementation="eager"))
    fused = LossesOf(tiny_module(attn_implementation="sdpa", gradient_checkpointing=True))
    found = [
        h_of(
            losses_of,
            dict(losses_of.named_parameters()),
            token_batch(4, seed=1),
            token_batch(2, seed=2),
            torch.full((4,), 0.25),
            lr=0.01,
        ).h
        for losses_of in (plain, fused)
    ]
    assert relative(*found) < 1e-2  # measured: 7e-5, the rounding of float32 losses


def test_a_target_at_its_optimum_gives_zero():
    toy = Toy()
    batch = toy_batch(2)
    batch["y"] = toy.net(batch["x"]).detach()
    h = h_of(toy, dict(toy.named_parameters()), toy_batch(1), batch, torch.full((6,), 1 / 6), lr=0.0).h
    assert torch.equal(h, torch.zeros(6, dtype=h.dtype))


def test_what_an_engine_cannot_do_is_refused():
    fused = LossesOf(tiny_module())
    arguments = token_batch(4), token_batch(2), torch.full((4,), 0.25)
    for engine in ("exact", "jvp"):
        with pytest.raises(ValueError, match='attn_implementation="eager"'):
            h_of(fused, dict(fused.named_parameters()), *arguments, lr=0.1, engine=engine)
    for dtype in (torch.bfloat16, torch.float16):
        half = LossesOf(tiny_module().to(dtype))
        with pytest.raises(ValueError, match='engine="fd" needs float32 parameters'):
            h_of(half, dict(half.named_parameters()), *arguments, lr=0.1)
    toy = Toy()
    with pytest.raises(ValueError, match='engine="exact" divides by the learning rate'):
        h_of(
            toy,
            dict(toy.named_parameters()),
            toy_batch(1),
            toy_batch(2),
            torch.full((6,), 1 / 6),
            lr=0.0,
            engine="exact",
        )
    with pytest.raises(ValueError, match="reference for one process"):
        check_engine("exact", toy, dict(toy.named_parameters()), Processes(0, 2))
