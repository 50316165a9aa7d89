"""The objective over a batch's scores: what it measures, against plain sums."""

from __future__ import annotations

import pytest
import torch

from pangu_modules.llm.distillation.cached import CachedDistillationConfig, label_logprobs, seen_share
from pangu_modules.llm.distillation.support import TeacherSupport


def test_the_share_seen_is_that_of_plain_sums() -> None:
    """Would fail if the label token's entry, which is there twice, counted twice."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 20).double() * 2
    p, q = teacher.softmax(-1), student.softmax(-1)
    best, ids = p.log().topk(4)
    labels = ids[:, 1]
    support = TeacherSupport.of(ids, best).with_labels(labels, p.log().gather(1, labels[:, None])[:, 0])
    tails = 1 - p.gather(1, ids).sum(1), 1 - q.gather(1, ids).sum(1)
    seen = (best.exp() * (best - q.gather(1, ids).log())).sum(1) + tails[0] * (tails[0] / tails[1]).log()
    whole = (p * (p / q).log()).sum(1)
    found = float(seen_share(student, teacher, support, CachedDistillationConfig()))
    assert found == pytest.approx(float(seen.sum() / whole.sum()), rel=1e-9)
    assert 0 < found < 1
    torch.testing.assert_close(label_logprobs(student, labels), q.log().gather(1, labels[:, None])[:, 0])
