"""Asynchronous copies into shared memory: issued, grouped, waited for."""

from __future__ import annotations

import numpy as np

from tests.ptx.memory import SETTLED, WRITTEN, Memory, spread


class Copies:
    """Asynchronous copies of a block. A lane waits for its own groups, in their order.

    The bytes are moved at once and marked as unsettled, so that whoever reads or writes them before
    the wait is caught; what follows a wait without a barrier is caught as a race.
    """

    def __init__(self, memory: Memory, count: int) -> None:
        self.memory = memory
        self.count = count
        self.start()

    def start(self) -> None:
        self.committed = np.zeros(self.count, np.int64)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []

    def issue(self, index: np.ndarray, size: int, lanes: np.ndarray) -> None:
        self.pending.append((lanes, index, self.committed[lanes], size))

    def wait(self, most: int, lanes: np.ndarray) -> None:
        """Until at most so many of each of these lanes' groups are on their way; -1: none, nor what
        no group holds."""
        limit = self.committed - most
        if most < 0:
            limit = self.committed + 1
        chosen = np.zeros(len(self.committed), bool)
        chosen[lanes] = True
        left = []
        for owners, index, number, size in self.pending:
            done = chosen[owners] & (number < limit[owners])
            if done.any():
                self._settle(index[done], size, owners[done])
            if not done.all():
                keep = ~done
                left.append((owners[keep], index[keep], number[keep], size))
        self.pending = left

    def _settle(self, index: np.ndarray, size: int, lanes: np.ndarray) -> None:
        word = min(size, 8)
        for part in range(0, size, word):
            at = index + part
            states = self.memory.states[word]
            states[at >> word.bit_length() - 1] |= states.dtype.type(
                spread(SETTLED | WRITTEN, word)
            )
            self.memory.races.write(at, word, lanes)
