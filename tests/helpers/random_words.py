"""Philox4x32-10 in whole numbers, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

MASK = 0xFFFFFFFF


def words_of(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """The four words, by the equations of the paper. Raises for what is no word."""
    assert len(counter) == 4
    assert len(key) == 2
    for word in (*counter, *key):
        assert isinstance(word, int)
        assert 0 <= word <= MASK
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c
