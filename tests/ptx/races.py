"""Races between the warps of a block: who touched a byte since the last barrier."""

from __future__ import annotations

import numpy as np

from tests.ptx.layout import WARP, WORDS, Trap, place_name

REMEMBERED = 1 << 14  # accesses; behind more of them everything is cleared


class Races:
    """Which warps have touched a byte of shared or global memory since the last barrier, a bit a
    warp. size: bytes of the player's memory."""

    def __init__(self, warps: int, size: int) -> None:
        self.dtype = np.dtype(np.uint8 if warps <= 8 else np.uint16 if warps <= 16 else np.uint32)
        self.readers = np.zeros(size, self.dtype)
        self.writers = np.zeros(size, self.dtype)
        self.most = 8 // self.dtype.itemsize  # bytes whose bits are looked at together
        self.views: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.own: dict[int, np.ndarray] = {}
        self.touched: list[tuple[int, np.ndarray]] = []
        lanes = np.arange(warps * WARP) // WARP
        for width in (1, 2, 4, 8):
            if width <= self.most:
                word = WORDS[width * self.dtype.itemsize]
                self.views[width] = self.readers.view(word), self.writers.view(word)
                bits = (np.ones((), self.dtype) << lanes.astype(self.dtype)).astype(self.dtype)
                self.own[width] = np.repeat(bits[:, None], width, 1).copy().view(word)[:, 0]

    def clear(self) -> None:
        if len(self.touched) == REMEMBERED:
            self.readers.fill(0)
            self.writers.fill(0)
        else:
            for size, word in self.touched:
                for bits in self.views[size]:
                    bits[word] = 0
        self.touched.clear()

    def _touch(self, size: int, word: np.ndarray) -> None:
        if len(self.touched) < REMEMBERED:
            self.touched.append((size, word))

    def read(self, index: np.ndarray, size: int, lanes: np.ndarray) -> None:
        """lanes: of the block, as numbers."""
        for part in range(0, size, self.most):
            self._read(index + part, min(size, self.most), lanes)

    def write(self, index: np.ndarray, size: int, lanes: np.ndarray, same: bool = False) -> None:
        """same: whether lanes that write to one place here write the same value, which Triton lets
        several warps do: a race of no consequence, and none for their own reads."""
        for part in range(0, size, self.most):
            self._write(index + part, min(size, self.most), lanes, same)

    def _read(self, index: np.ndarray, size: int, lanes: np.ndarray) -> None:
        readers, writers = self.views[size]
        own = self.own[size][lanes]
        word = index >> size.bit_length() - 1
        before = writers.take(word)
        if ((before | own) != own).any():
            others = self._bytes(before & ~own) * (self._bytes(before & own) == 0)
            if others.any():
                self._report(index, lanes, others.any(1), "reads what", "has written")
        self._touch(size, word)
        self._add(readers, word, own)

    def _bytes(self, words: np.ndarray) -> np.ndarray:
        """(lanes, bytes) of the bits of words."""
        return np.ascontiguousarray(words).view(self.dtype).reshape(len(words), -1)

    def _write(self, index: np.ndarray, size: int, lanes: np.ndarray, same: bool) -> None:
        readers, writers = self.views[size]
        own = self.own[size][lanes]
        word = index >> size.bit_length() - 1
        before = writers.take(word) | readers.take(word)
        if ((before | own) != own).any():
            written = ((writers.take(word) | own) != own).any()
            other = "has written" if written else "has read"
            self._report(index, lanes, before & ~own, "writes what", other)
        self._touch(size, word)
        self._add(writers, word, own)
        if not same and (writers.take(word) != own).any():
            others = writers.take(word) & ~own
            self._report(index, lanes, others, "writes what", "writes with it")

    @staticmethod
    def _add(bits: np.ndarray, word: np.ndarray, own: np.ndarray) -> None:
        """Set each lane's bit, also where lanes of several warps have the same word."""
        mine, at = own, word
        while len(at):
            bits[at] = bits.take(at) | mine
            lost = (bits.take(at) & mine) != mine
            if not lost.any():
                return
            at, mine = at[lost], mine[lost]

    @staticmethod
    def _report(
        index: np.ndarray, lanes: np.ndarray, others: np.ndarray, verb: str, other: str
    ) -> None:
        i = int(np.flatnonzero(others)[0])
        raise Trap(
            f"race: warp {int(lanes[i]) // WARP} {verb} another warp {other} "
            f"since the last barrier, {place_name(int(index[i]))}"
        )
