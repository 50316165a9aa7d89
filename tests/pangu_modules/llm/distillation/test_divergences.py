"""Divergences over a cached support, against torch's own over the whole vocabulary and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pangu_modules.llm.distillation.divergences import DivergenceConfig, cached_divergence
from pangu_modules.llm.distillation.support import TeacherSupport, student_logprobs

N, V = 7, 19


def pair(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(N, V, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def support_of(teacher, k, temperature=1.0):
    logprobs, ids = (teacher / temperature).log_softmax(-1).topk(k)
    return TeacherSupport.of(ids, logprobs)


def full(divergence, student, teacher, temperature=1.0, beta=0.5):
    """The definition, over the whole vocabulary, token by token."""
    losses = []
    for row_q, row_p in zip(student, teacher, strict=True):
        q, p = (row_q / temperature).softmax(-1), (row_p / temperature).softmax(-1)
        m = beta * p + (1 - beta) * q
        terms = {
            "forward_kl": lambda p=p, q=q: (p * (p / q).log()).sum(),
            "reverse_kl": lambda p=p, q=q: (q * (q / p).log()).sum(),
            "jsd": lambda p=p, q=q, m=m: beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum(),
        }
        losses.append(temperature**2 * terms[divergence]())
    return torch.stack(losses)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_with_the_whole_vocabulary_it_is_the_definition(divergence, temperature):
    student, teacher = pair()
    config = DivergenceConfig(divergence=divergence, temperature=temperature, jsd_beta=0.3)
    got = cached_divergence(student, support_of(teacher, V, temperature), config)
    want = full(divergence, student, teacher, temperature, beta=0.3)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)  # seen: 2e-12; float64's rounding of logsumexp


def test_with_the_whole_vocabulary_it_equals_torch_in_float32():
    student, teacher = pair(torch.float32)
    want = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none")
    got = cached_divergence(student, support_of(teacher, V), DivergenceConfig())
    torch.testing.assert_close(got, want.sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_the_bucket_is_a_lower_bound_that_grows_with_k(divergence):
    student, teacher = pair()
    config = DivergenceConfig(divergence=divergence)
    values = torch.stack([cached_divergence(student, support_of(teacher, k), config) for k in range(1, V + 1)])
    assert (values >= -1e-12).all()
    assert (values.diff(dim=0) >= -1e-9).all()  # a sum without the tail would not grow, and be negative
    assert (values[-1] - full(divergence, student, teacher)).abs().max() < 1e-9


@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_it_is_zero_for_equal_distributions_alone(divergence, k):
    student, teacher = pair()
    config = DivergenceConfig(divergence=divergence)
    assert cached_divergence(teacher + 2.5, support_of(teacher, k), config).abs().max() < 1e-9
    assert (cached_divergence(student, support_of(teacher, k), config) > 1e-6).all()


def test_what_the_student_puts_outside_the_support_counts_with_the_bucket_alone():
    _, teacher = pair()
    outside = teacher.topk(V).indices[:, -1:]
    leaking = teacher.scatter_add(1, outside, torch.full_like(teacher, 15.0)[:, :1])
    support = support_of(teacher, 3)
    assert (cached_divergence(leaking, support, DivergenceConfig()) > 0.1).all()
    blind = cached_divergence(leaking, support, DivergenceConfig(tail="renormalise"))
    assert blind.abs().max() < 1e-9


@pytest.mark.parametrize(
    "config",
    [
        {"divergence": "forward_kl"},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd", "jsd_beta": 0.2},
        {"tail": "renormalise"},
        {"temperature": 2.0},
        {"label_weight": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("k", [2, V])
def test_gradients(config, k):
    student, teacher = pair()
    labels = torch.arange(N)
    config = DivergenceConfig(**config, chunk_tokens=3)
    log_p = (teacher / config.temperature).log_softmax(-1)
    support = support_of(teacher, k, config.temperature).with_labels(labels, log_p.gather(1, labels[:, None])[:, 0])
    student.requires_grad_()

    def losses(logits):
        return cached_divergence(logits, support, config, labels=labels)

    assert torch.autograd.gradcheck(losses, student, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(losses, student, fast_mode=True)


def test_some_rows_are_as_if_there_were_no_others():
    """Would fail if a row's gradient went to the row of its number among those that count."""
    student, teacher = pair()
    rows = torch.tensor([4, 0, 3])
    results = []
    for chosen in (rows, None):
        logits = student.clone().requires_grad_()
        given = logits if chosen is not None else logits[rows]
        losses = cached_divergence(given, support_of(teacher[rows], 3), DivergenceConfig(chunk_tokens=2), rows=chosen)
        losses.sum().backward()
        results.append((losses.detach(), logits.grad))
    torch.testing.assert_close(*(losses for losses, _ in results), rtol=0, atol=0)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=0, atol=1e-15)
    assert results[0][1][1].abs().sum() == 0


def test_a_label_that_is_there_already_counts_once():
    student, teacher = pair()
    labels = teacher.argmax(-1)
    log_p = teacher.log_softmax(-1)
    support = support_of(teacher, 3)
    twice = support.with_labels(labels, log_p.gather(1, labels[:, None])[:, 0])
    config = DivergenceConfig()
    torch.testing.assert_close(cached_divergence(student, twice, config), cached_divergence(student, support, config))
    torch.testing.assert_close(twice.tail(), support.tail())


def test_the_label_adds_its_own_term():
    student, teacher = pair()
    labels = torch.arange(N)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    support = support_of(teacher, 3).with_labels(labels, log_p.gather(1, labels[:, None])[:, 0])
    plain, weighted = (
        cached_divergence(student, support, DivergenceConfig(label_weight=weight), labels=labels) for weight in (0, 0.7)
    )
    want = [-0.7 * math.exp(log_p[row, row]) * float(log_q[row, row]) for row in range(N)]
    torch.testing.assert_close(weighted - plain, torch.tensor(want, dtype=torch.float64))


def test_chunks_change_neither_values_nor_gradients():
    student, teacher = pair()
    results = []
    for chunk in (1, 3, N):
        logits = student.clone().requires_grad_()
        losses = cached_divergence(logits, support_of(teacher, 4), DivergenceConfig(chunk_tokens=chunk))
        losses.sum().backward()
        results.append((losses.detach(), logits.grad))
    for losses, gradient in results[1:]:
        torch.testing.assert_close(losses, results[0][0], rtol=0, atol=1e-14)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-14)


def test_a_tail_as_small_as_float32_can_say_is_not_lost():
    logits = torch.zeros(1, V)
    logits[0, 0] = 30.0  # all others together: 18 exp(-30)
    _, tail = student_logprobs(logits, torch.tensor([[0]]))
    assert float(tail) == pytest.approx(math.log(18) - 30, abs=1e-4)  # log(1 - q) would be minus infinity


def test_bad_inputs_name_the_position_or_token():
    student, teacher = pair()
    logprobs, ids = teacher.log_softmax(-1).topk(2)
    logprobs[3, 1] = torch.nan
    with pytest.raises(ValueError, match="position 3 are not finite"):
        TeacherSupport.of(ids, logprobs)
    with pytest.raises(ValueError, match="token 18 is outside the student's vocabulary of 5"):
        cached_divergence(student[:, :5], TeacherSupport.of(ids * 0 + 18, logprobs.nan_to_num()), DivergenceConfig())
    with pytest.raises(ValueError, match="take tail='bucket'"):
        DivergenceConfig(divergence="jsd", tail="renormalise")
