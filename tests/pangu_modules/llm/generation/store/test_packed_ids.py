"""Bit-packed ids, against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_modules.llm.generation.store.packed_ids import bits_for, pack_ids, unpack_ids


@given(st.integers(1, 25), st.lists(st.integers(0, 2**25 - 1), max_size=70))
@settings(deadline=None, max_examples=60)
def test_ids_come_back_and_lie_as_one_long_integer(bits, numbers):
    ids = np.array([number % (1 << bits) for number in numbers], dtype=np.int64)
    packed = pack_ids(ids, bits)
    whole = sum(int(value) << (bits * place) for place, value in enumerate(ids))
    assert int.from_bytes(packed, "little") == whole
    assert len(packed) == (bits * len(ids) + 7) // 8
    np.testing.assert_array_equal(unpack_ids(packed, bits, len(ids)), ids)


def test_the_family_needs_18_bits():
    assert bits_for(153_376) == 18  # 17, as elsewhere, end at 131,072
    assert (bits_for(1), bits_for(2), bits_for(3), bits_for(49_152), bits_for(131_072)) == (1, 1, 2, 16, 17)
    with pytest.raises(ValueError, match="has 1 to 33554432 tokens, got 0"):
        bits_for(0)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="token id 131072 does not fit 17 bits"):
        pack_ids(np.array([5, 131_072]), 17)
    with pytest.raises(ValueError, match="3 ids of 18 bits are 7 bytes, not 6"):
        unpack_ids(b"123456", 18, 3)
