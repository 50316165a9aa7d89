import math

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from pangu_modules.llm.distillation.loss import distillation_loss
from pangu_modules.llm.losses import (
    count_targets,
    labels_of,
    next_tokens,
    per_sequence_loss,
)

IGNORED = -100


def example(batch=3, seq=7, vocabulary=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, seq, vocabulary, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (batch, seq), generator=generator)
    labels[0, :4] = IGNORED
    labels[1, 5:] = IGNORED
    return logits, labels


def slow_cross_entropy(logits, labels):
    """One token at a time, with Python's own logarithm of a sum."""
    losses = []
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = [
            math.log(math.fsum(math.exp(z) for z in row[t])) - row[t][targets[t + 1]]
            for t in range(len(targets) - 1)
            if targets[t + 1] != IGNORED
        ]
        losses.append(math.fsum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


def slow_divergence(student, teacher, labels, temperature):
    losses = []
    for ours, theirs, targets in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        terms = []
        for t in range(len(targets) - 1):
            if targets[t + 1] == IGNORED:
                continue
            q, p = ([math.exp(z / temperature) for z in row[t]] for row in (ours, theirs))
            q, p = ([value / math.fsum(row) for value in row] for row in (q, p))
            terms.append(temperature**2 * math.fsum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
        losses.append(math.fsum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
def test_cross_entropy_equals_one_token_at_a_time(chunk_tokens):
    logits, labels = example()
    got = per_sequence_loss(logits, labels, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(got, slow_cross_entropy(logits, labels), rtol=0, atol=1e-14)  # seen: 4e-16


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_equals_one_token_at_a_time(chunk_tokens, temperature):
    student, labels = example()
    teacher, _ = example(seed=1)
    got = distillation_loss(student, teacher, labels, temperature=temperature, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(got, slow_divergence(student, teacher, labels, temperature), rtol=0, atol=1e-14)


def both_losses(labels, teacher, chunk_tokens):
    yield lambda logits: per_sequence_loss(logits, labels, chunk_tokens=chunk_tokens)
    yield lambda logits: distillation_loss(logits, teacher, labels, temperature=1.7, chunk_tokens=chunk_tokens)


def test_gradients_first_second_and_forward_mode():
    logits, labels = example(batch=2, seq=4, vocabulary=5)
    teacher, _ = example(batch=2, seq=4, vocabulary=5, seed=1)
    for loss in both_losses(labels, teacher, chunk_tokens=3):
        inputs = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(loss, (inputs,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, (inputs,))


def test_functional_transforms():
    logits, labels = example()
    teacher, _ = example(seed=1)
    tangent, _ = example(seed=2)
    for loss in both_losses(labels, teacher, chunk_tokens=4):
        inputs = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(inputs).sum(), inputs)
        torch.testing.assert_close(grad(lambda x, f=loss: f(x).sum())(logits), gradient, rtol=0, atol=0)
        forward = jvp(loss, (logits,), (tangent,))[1]
        torch.testing.assert_close(forward, (gradient * tangent).sum((1, 2)), rtol=0, atol=1e-14)

    def one_sequence(logits, labels):
        return per_sequence_loss(logits[None], labels[None], chunk_tokens=4)[0]

    per_sample = vmap(grad(one_sequence))(logits, labels)
    inputs = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(per_sequence_loss(inputs, labels).sum(), inputs)
    torch.testing.assert_close(per_sample, gradient, rtol=0, atol=1e-15)


def test_chunks_do_not_change_values_or_gradients():
    logits, labels = example(batch=2, seq=50, vocabulary=30, dtype=torch.float32)
    teacher, _ = example(batch=2, seq=50, vocabulary=30, seed=1, dtype=torch.float32)
    results = []
    for chunk_tokens in (7, 1000):
        for loss in both_losses(labels, teacher, chunk_tokens):
            inputs = logits.clone().requires_grad_()
            value = loss(inputs)
            value.sum().backward()
            results.append((value.detach(), inputs.grad))
    for chunked, whole in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=0)  # rows are independent: the same arithmetic


def test_bfloat16_logits_are_summed_in_float32():
    logits, labels = example(dtype=torch.bfloat16)
    inputs = logits.clone().requires_grad_()
    losses = per_sequence_loss(inputs, labels)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert inputs.grad.dtype == torch.bfloat16
    reference = slow_cross_entropy(logits.double(), labels).float()
    torch.testing.assert_close(losses, reference, rtol=0, atol=1e-6)  # float32 sums of 11 terms; seen: 2e-7


def test_no_copy_of_the_logits_is_kept_for_the_backward_pass():
    logits, labels = example(batch=2, seq=64, vocabulary=100, dtype=torch.float32)
    inputs = logits.requires_grad_()
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = per_sequence_loss(inputs, labels)
    vocabulary_sized = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() >= logits.numel()}
    assert loss.requires_grad
    assert vocabulary_sized == {logits.untyped_storage().data_ptr()}


def test_a_sequence_without_targets_has_loss_and_gradient_zero():
    logits, labels = example()
    labels[2] = IGNORED
    teacher, _ = example(seed=1)
    for loss in both_losses(labels, teacher, chunk_tokens=4):
        inputs = logits.clone().requires_grad_()
        losses = loss(inputs)
        losses.sum().backward()
        assert losses[2] == 0
        assert (losses[:2] > 0).all()
        assert inputs.grad[2].abs().max() == 0


def test_distillation_is_zero_for_the_same_logits_and_gives_no_gradient_to_the_teacher():
    student, labels = example()
    inputs, teacher = student.clone().requires_grad_(), student.clone().requires_grad_()
    losses = distillation_loss(inputs, teacher, labels, temperature=2.0)
    losses.sum().backward()
    assert losses.abs().max() == 0
    assert inputs.grad.abs().max() == 0
    assert teacher.grad is None


def test_errors_name_shapes_and_remedy():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"\(3, 7, 11\) and \(3, 6\)"):
        per_sequence_loss(logits, labels[:, :6])
    with pytest.raises(ValueError, match="one vocabulary"):
        distillation_loss(logits, logits[..., :9], labels)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation_loss(logits, logits, labels, temperature=0)


def test_labels_next_tokens_and_counts():
    input_ids = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert next_tokens(input_ids).tolist() == [[6, 7, 8, IGNORED], [3, 0, 0, IGNORED]]
    assert labels_of({"input_ids": input_ids}).tolist() == input_ids.tolist()
    labels = labels_of({"input_ids": input_ids, "attention_mask": mask})
    assert labels.tolist() == [[5, 6, 7, 8], [9, 3, IGNORED, IGNORED]]
    assert count_targets(labels).tolist() == [3, 1]
    assert labels_of({"input_ids": input_ids, "labels": labels}) is labels
    masked = torch.tensor([[IGNORED, IGNORED, 7, 8], [IGNORED, 3, IGNORED, IGNORED]])
    assert count_targets(masked).tolist() == [2, 1]


def test_forward_mode_through_a_model():
    """The losses of all sequences along one direction of the weights, in one forward pass."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 11).double()
    hidden = torch.randn(3, 7, 6, dtype=torch.float64)
    _, labels = example()
    weights = dict(model.named_parameters())
    direction = {name: torch.randn_like(value) for name, value in weights.items()}

    def losses(weights):
        return per_sequence_loss(functional_call(model, weights, (hidden,)), labels, chunk_tokens=4)

    _, tangents = jvp(losses, (weights,), (direction,))
    step = 1e-6
    moved = [losses({n: w + sign * step * direction[n] for n, w in weights.items()}) for sign in (1, -1)]
    # central differences: error of order step^2 plus rounding / step; seen 2e-10
    torch.testing.assert_close(tangents, (moved[0] - moved[1]) / (2 * step), rtol=0, atol=1e-8)
