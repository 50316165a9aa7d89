"""A method is checked when it is declared."""

import pytest
from toy_method import method


def test_a_method_is_checked_when_declared():
    with pytest.raises(ValueError, match="arm 'better': needs 'base', which is no arm declared before"):
        method(arms=method().arms[1:], claims=())
    with pytest.raises(ValueError, match="more than one arm is named base"):
        method(arms=method().arms[:1] * 2, claims=())
    with pytest.raises(ValueError, match="claim 'accuracy': 'better', which is no arm"):
        method(arms=method().arms[:1])
