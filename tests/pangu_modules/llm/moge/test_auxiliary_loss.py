"""The auxiliary loss equals its formula in loops, leaves padding out, and is the same over two ranks as over one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import run_ranks
from torch import Tensor

from pangu_modules.llm.moge.auxiliary_loss import auxiliary_loss, auxiliary_objective, selected_counts, z_loss
from pangu_modules.llm.moge.routing import Routing, route_moge

EXPERTS, GROUPS, CHOSEN = 8, 4, 4


def logits(num_tokens: int = 10, layers: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(layers, num_tokens, EXPERTS, dtype=torch.float64, generator=generator)


def routings(values: Tensor) -> list[Routing]:
    return [route_moge(layer, GROUPS, CHOSEN) for layer in values]


def by_formula(values: Tensor, mask: list[bool]) -> float:
    total = 0.0
    for layer in values:
        kept = [token for token, keep in zip(layer, mask, strict=True) if keep]
        f, p = [0.0] * EXPERTS, [0.0] * EXPERTS
        for token in kept:
            scores = token.softmax(0)
            for group in range(GROUPS):
                f[2 * group + int(scores[2 * group : 2 * group + 2].argmax())] += EXPERTS / (CHOSEN * len(kept))
            for expert in range(EXPERTS):
                p[expert] += float(scores[expert]) / len(kept)
        total += sum(a * b for a, b in zip(f, p, strict=True))
    return total / len(values)


def test_equals_the_formula() -> None:
    values = logits()
    assert float(auxiliary_loss(routings(values))) == pytest.approx(by_formula(values, [True] * 10), abs=1e-14)


def test_padding_is_left_out() -> None:
    values = logits()
    mask = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
    got = auxiliary_loss(routings(values), mask)
    assert float(got) == pytest.approx(by_formula(values, mask.bool().tolist()), abs=1e-14)
    values[:, mask == 0] += 5 * torch.randn(EXPERTS, dtype=torch.float64)
    assert float(auxiliary_loss(routings(values), mask)) == pytest.approx(float(got), abs=1e-14)
    counts = selected_counts(routings(values)[0], mask)
    assert int(counts.sum()) == 6 * CHOSEN
    kept = routings(values[:, mask == 1])
    assert float(z_loss(routings(values), mask)) == pytest.approx(float(z_loss(kept)), abs=1e-12)


def test_is_one_where_experts_are_used_equally() -> None:
    values = torch.zeros(1, 2, EXPERTS, dtype=torch.float64)
    values[0, 0, ::2] = values[0, 1, 1::2] = 1.0
    assert float(auxiliary_loss(routings(values))) == pytest.approx(1.0, abs=1e-14)


def test_the_gradient_goes_through_the_scores_alone() -> None:
    values = logits(layers=1).requires_grad_()
    (got,) = torch.autograd.grad(auxiliary_loss(routings(values)), values)
    fractions = selected_counts(routings(values)[0]).double() * EXPERTS / (CHOSEN * 10)
    (want,) = torch.autograd.grad((fractions * values[0].softmax(-1).mean(0)).sum(), values)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)  # seen 1e-17


def test_of_no_token_it_is_zero() -> None:
    values = logits(0).requires_grad_()
    loss = auxiliary_loss(routings(values))
    assert loss.item() == 0
    loss.backward()


SPLITS = ((4, 6), (10, 0))  # tokens of two ranks: unequal, and one without


def losses_of_a_rank() -> list[dict[str, Tensor]]:
    results = []
    for split in SPLITS:
        index = dist.get_rank()
        start = 0 if index == 0 else split[0]
        values = logits()[:, start : start + split[index]].clone().requires_grad_()
        loss = auxiliary_loss(routings(values))
        (grad,) = torch.autograd.grad(loss, values)
        results.append({"loss": loss.detach(), "grad": grad, "micro": auxiliary_loss(routings(values), scope="micro")})
    return results


def test_two_ranks_average_to_one(tmp_path: Path) -> None:
    """The mean of both ranks' gradients is that of the whole batch."""
    ranks = run_ranks(losses_of_a_rank, 2, tmp_path / "ranks")
    values = logits().requires_grad_()
    loss = auxiliary_loss(routings(values))
    (want,) = torch.autograd.grad(loss, values)
    for split, first, second in zip(SPLITS, *ranks, strict=True):
        got = torch.cat((first["grad"], second["grad"]), 1) / 2
        torch.testing.assert_close(got, want, rtol=0, atol=1e-15)  # seen 0: the same sums
        assert ((first["loss"] + second["loss"]) / 2).item() == pytest.approx(loss.item(), abs=1e-14)
        alone = auxiliary_loss(routings(logits()[:, : split[0]]))
        assert first["micro"].item() == pytest.approx(alone.item(), abs=1e-14)


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not be negative, got -0\.1"):
        auxiliary_objective(-0.1)
