"""Memory of a played kernel: one array of bytes, and for every byte what may be done to it.

Windows of the array are shared memory, the kernel's parameters and each lane's local memory;
the rest holds tensors, whose addresses in the process are the addresses that the kernel gets. So a
generic address needs no case distinction.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

WARP = 32
LANES = 256  # of a block, at most: a bit of a byte for each warp
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SHARED_BYTES = 232 * 1024
FIRST_SHARED = 1024  # what the driver keeps in front
LOCAL_BYTES = 4096  # of a lane

# The state of a byte, as bits.
INSIDE = 1  # of a tensor, a variable or a window
WRITTEN = 2
ONCE = 4  # may be written once
SETTLED = 8  # no asynchronous copy into it is on its way
OPEN = 16  # may be written
READABLE = INSIDE | WRITTEN | SETTLED
WRITABLE = INSIDE | SETTLED | OPEN

GAP = 256  # bytes between tensors, that belong to none
MOST_ACCESSES = 1 << 14  # accesses; after more of them everything is cleared


class Trap(Exception):
    """A kernel did what it must not do."""


def place_name(index: int) -> str:
    """Name of a place of the player's memory for a reader."""
    if 0 <= index < SHARED_BYTES:
        return f"shared byte {index - FIRST_SHARED}"
    return f"byte {index} of the player's memory"


def spread(bits: int, size: int) -> int:
    """The same bits in every byte of a word."""
    return int.from_bytes(bytes([bits]) * size, "little")


def word_of(index: np.ndarray, size: int) -> np.ndarray:
    """Places in the array of words of so many bytes."""
    return index >> size.bit_length() - 1


class Races:
    """Which warps have touched a byte of shared or global memory since the last barrier, a bit a
    warp. size: bytes of the player's memory."""

    def __init__(self, size: int) -> None:
        readers, writers = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        self.views = {w: (readers.view(word), writers.view(word)) for w, word in WORDS.items()}
        warps = np.arange(LANES, dtype=np.uint64) // np.uint64(WARP)
        self.own = {
            w: ((np.uint64(1) << warps) * np.uint64(spread(1, w))).astype(word)
            for w, word in WORDS.items()
        }
        self.touched: list[tuple[int, np.ndarray]] = []

    def clear(self) -> None:
        everything = [(1, slice(None))]
        for size, word in everything if len(self.touched) == MOST_ACCESSES else self.touched:
            for bits in self.views[size]:
                bits[word] = 0
        self.touched.clear()

    def read(self, index: np.ndarray, size: int, lanes: np.ndarray) -> None:
        """lanes: of the block, as numbers."""
        readers, writers = self.views[size]
        own, word = self.own[size][lanes], word_of(index, size)
        before = writers.take(word)
        if (before & ~own).any():
            others, mine = (
                bits.view(np.uint8).reshape(-1, size) for bits in (before & ~own, before & own)
            )
            self._check(index, lanes, ((others != 0) & (mine == 0)).any(1), "reads")
        self._touch(readers, word, own, size)

    def write(self, index: np.ndarray, size: int, lanes: np.ndarray, same: bool) -> None:
        """same: whether lanes that write to one place here write the same value, which Triton lets
        several warps do: a race of no consequence, and none for their own reads."""
        readers, writers = self.views[size]
        own, word = self.own[size][lanes], word_of(index, size)
        self._check(index, lanes, (writers.take(word) | readers.take(word)) & ~own, "writes")
        self._touch(writers, word, own, size)
        if not same:
            self._check(index, lanes, writers.take(word) & ~own, "writes")

    def _touch(self, bits: np.ndarray, word: np.ndarray, own: np.ndarray, size: int) -> None:
        np.bitwise_or.at(bits, word, own)
        if len(self.touched) < MOST_ACCESSES:
            self.touched.append((size, word))

    @staticmethod
    def _check(index: np.ndarray, lanes: np.ndarray, others: np.ndarray, verb: str) -> None:
        if others.any():
            i = int(np.flatnonzero(others)[0])
            raise Trap(
                f"race: warp {int(lanes[i]) // WARP} {verb} what another warp has touched since "
                f"the last barrier, {place_name(int(index[i]))}"
            )


class Memory:
    """bytes: for tensors, a power of two in all.

    `place` copies a tensor in, `empty` makes one that nobody has written; both return a tensor over
    the player's memory. Outputs declared `once` must not be written twice; inputs not at all.
    """

    INPUT = READABLE  # the state of what is there and may not be written

    def __init__(self, size: int = 1 << 23) -> None:
        gc.collect()  # players before refer to themselves in circles
        self.local_bytes = LOCAL_BYTES
        self.shared = 0
        self.parameters = self.shared + SHARED_BYTES
        self.local = self.parameters + (1 << 14)
        first_tensor = -(-(self.local + LANES * LOCAL_BYTES) // 4096) * 4096
        self.size = 1 << (first_tensor + size - 1).bit_length()
        raw = np.zeros(self.size + 4096, np.uint8)
        skip = -raw.ctypes.data % 4096
        self.bytes = raw[skip : skip + self.size]
        self.state = np.zeros(self.size, np.uint8)
        self.base = self.bytes.ctypes.data
        self.words = {size: self.bytes.view(dtype) for size, dtype in WORDS.items()}
        self.states = {size: self.state.view(dtype) for size, dtype in WORDS.items()}
        self.state[self.local : first_tensor] = READABLE | OPEN
        self._next = first_tensor + GAP
        self.races = Races(self.size)

    def empty(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        once: bool = False,
        strides: Sequence[int] | None = None,
        alignment: int = 256,
    ) -> Tensor:
        """A tensor of unwritten bytes (they hold NaNs), in PyTorch's strides, in elements."""
        if strides is None:
            strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
        elements = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = dtype.itemsize * (elements if 0 not in shape else 0)
        at = -(-self._next // alignment) * alignment
        self._next = at + size + GAP
        if self._next > self.size:
            raise MemoryError(f"the player's memory has {self.size} bytes; give it more")
        self.bytes[at : at + size] = 0xFF
        whole = torch.from_numpy(self.bytes[at : at + size]).view(dtype)
        tensor = whole.as_strided(tuple(shape), tuple(strides))
        self.mark(tensor, INSIDE | SETTLED | OPEN | (ONCE if once else 0))
        return tensor

    def place(self, tensor: Tensor, *, writable: bool = False) -> Tensor:
        """A copy in the player's memory, of the same strides and alignment (up to 256)."""
        alignment = min(tensor.data_ptr() & -tensor.data_ptr(), 256) if tensor.numel() else 16
        copy = self.empty(
            tensor.shape, tensor.dtype, strides=tensor.stride(), alignment=max(alignment, 16)
        )
        # An expanded dimension has one element.
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
        copy[once].copy_(tensor[once])
        self.mark(copy, READABLE | (OPEN if writable else 0))
        return copy

    def holds(self, tensor: Tensor) -> bool:
        return 0 <= tensor.data_ptr() - self.base < self.size

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Free, after the block, the tensors that are made inside."""
        before = self._next
        yield
        self.state[before : self._next] = 0
        self._next = before

    def mark(self, tensor: Tensor, state: int) -> None:
        """Set the state of a tensor's bytes, and of no others between them."""
        if tensor.numel():
            self._states_of(tensor).fill_(state)

    def written(self, tensor: Tensor) -> Tensor:
        """Which elements have been written in full, as booleans of the tensor's shape."""
        return ((self._states_of(tensor) & WRITTEN) != 0).all(-1)

    def _states_of(self, tensor: Tensor) -> Tensor:
        size = tensor.element_size()
        shape, strides = (*tensor.shape, size), (*(s * size for s in tensor.stride()), 1)
        return torch.from_numpy(self.state).as_strided(
            shape, strides, tensor.data_ptr() - self.base
        )

    def start_block(self, shared: int, parameters: bytes) -> None:
        """Make shared memory that many fresh bytes, and write the parameters."""
        if FIRST_SHARED + shared > SHARED_BYTES:
            raise Trap(f"{shared} bytes of shared memory")
        first = self.shared + FIRST_SHARED
        self.state[self.shared : self.local] = 0
        self.state[first : first + shared] = INSIDE | SETTLED | OPEN
        self.bytes[first : first + shared] = 0xFF
        window = slice(self.parameters, self.parameters + len(parameters))
        self.state[window] = READABLE
        self.bytes[window] = np.frombuffer(parameters, np.uint8)
        self.races.clear()

    def locate(self, index: np.ndarray, size: int) -> np.ndarray:
        """Check that places in the array (uint64, may wrap) are inside it and multiples of size."""
        together = int(np.bitwise_or.reduce(index))
        if together >= self.size:
            inside = index + np.uint64(size) <= self.size
            if not inside.all():
                raise Trap(f"{self._which(index, ~inside)} is outside of every tensor")
        if together & (size - 1):
            wrong = (index & np.uint64(size - 1)) != 0
            raise Trap(f"{self._which(index, wrong)} is not a multiple of {size}")
        return index.view(np.int64)

    def load(self, index: np.ndarray, size: int, lanes: np.ndarray | None) -> np.ndarray:
        """The words of `size` bytes at these places. lanes: None for memory of each lane's own."""
        states = self._check(index, size, READABLE, "read")
        if lanes is not None and int(np.bitwise_or.reduce(states)) & spread(OPEN | ONCE, size):
            self.races.read(index, size, lanes)
        return self.words[size].take(word_of(index, size))

    def store(
        self, index: np.ndarray, size: int, values: np.ndarray, lanes: np.ndarray | None
    ) -> None:
        states, word = self._check(index, size, WRITABLE, "write"), word_of(index, size)
        words = self.words[size]
        words[word] = values
        if lanes is not None:
            # A value read back differs where lanes write different values to one place.
            self.races.write(index, size, lanes, bool((words.take(word) == values).all()))
        once = states & states.dtype.type(spread(ONCE, size))
        if once.any() and len(np.unique(index)) < len(index):
            raise Trap("lanes write the same byte of an output that may be written once")
        states = states & ~(once << states.dtype.type(2))  # ONCE takes OPEN away
        self.states[size][word] = states | states.dtype.type(spread(WRITTEN, size))

    def _check(self, index: np.ndarray, size: int, want: int, verb: str) -> np.ndarray:
        """States found, each of which must have the bits that are wanted."""
        states = self.states[size].take(word_of(index, size))
        wanted = spread(want, size)
        if int(np.bitwise_and.reduce(states)) & wanted == wanted:
            return states
        each = states.view(np.uint8).reshape(-1, size)
        wrong = (each & want) != want
        bits = int(each[wrong][0])
        if not bits & INSIDE:
            reason = "is outside of every tensor"
        elif not bits & SETTLED:
            reason = "is the target of an asynchronous copy that no wait has covered"
        elif verb == "read":
            reason = "was never written"
        elif bits & ONCE:
            reason = "is an output that has been written already"
        else:
            reason = "is an input"
        raise Trap(f"{verb} of {size} bytes: {self._which(index, wrong.any(1))} {reason}")

    def _which(self, index: np.ndarray, wrong: np.ndarray) -> str:
        """Name of the first wrong place, by its window, and how many there are."""
        place = int(index[wrong][0])
        more = f" (and {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
        if 0 <= place < self.parameters:
            return place_name(place) + more
        if self.parameters <= place < self.local:
            return f"parameter byte {place - self.parameters}{more}"
        return f"address {(place + self.base) % 2**64:#x}{more}"


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
        """Words of `size` bytes, written already, are on their way."""
        states = self.memory.states[size]
        states[word_of(index, size)] &= ~states.dtype.type(spread(SETTLED, size))
        self.pending.append((lanes, index, self.committed[lanes], size))

    def wait(self, most: int, lanes: np.ndarray) -> None:
        """Until at most so many of each of these lanes' groups are on their way."""
        chosen = np.zeros(self.count, bool)
        chosen[lanes] = True
        left = []
        for owners, index, number, size in self.pending:
            done = chosen[owners] & (number < self.committed[owners] - most)
            states = self.memory.states[size]
            states[word_of(index[done], size)] |= states.dtype.type(spread(SETTLED, size))
            self.memory.races.write(index[done], size, owners[done], same=False)
            if not done.all():
                left.append((owners[~done], index[~done], number[~done], size))
        self.pending = left
