"""Token ids in as few bits as the vocabulary needs: 18 for 153,376 tokens, where int32 would take 32."""

from __future__ import annotations

import numpy as np

MOST_BITS = 25  # a number of so many bits lies within four bytes, wherever it begins


def bits_for(vocabulary: int) -> int:
    """Return the bits that a token id needs, ``ceil(log2(vocabulary))``, at least one.

    Raises:
        ValueError: the vocabulary is empty, or has more than 2^25 tokens.
    """
    bits = max(1, (vocabulary - 1).bit_length())
    if vocabulary < 1 or bits > MOST_BITS:
        raise ValueError(f"a vocabulary has 1 to {2**MOST_BITS} tokens, got {vocabulary}")
    return bits


def pack_ids(ids: np.ndarray, bits: int) -> bytes:
    """Return ids, of any shape and in C order, as a row of `bits` each, the lowest first.

    Raises:
        ValueError: an id does not fit.
    """
    flat = np.ascontiguousarray(ids).reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        wrong = flat[(flat < 0) | (flat >= 1 << bits)][0]
        raise ValueError(f"token id {wrong} does not fit {bits} bits: the vocabulary given is too small")
    each = (flat.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little").tobytes()


def unpack_ids(packed: bytes, bits: int, count: int) -> np.ndarray:
    """Return `count` ids, (count,) int64, that `pack_ids` has packed.

    Raises:
        ValueError: there are fewer bytes than they need.
    """
    needed = (count * bits + 7) // 8
    if len(packed) != needed:
        raise ValueError(f"{count} ids of {bits} bits are {needed} bytes, not {len(packed)}")
    padded = np.frombuffer(packed + b"\0\0\0\0", dtype=np.uint8).astype(np.uint32)
    start = np.arange(count, dtype=np.int64) * bits
    byte = start >> 3
    word = padded[byte] | padded[byte + 1] << 8 | padded[byte + 2] << 16 | padded[byte + 3] << 24
    return ((word >> (start & 7).astype(np.uint32)) & np.uint32((1 << bits) - 1)).astype(np.int64)
