"""Memory of a played kernel: one array of bytes, and for every byte what may be done to it.

Windows of the array stand for shared memory, the kernel's parameters and each lane's local memory;
the rest holds tensors, whose addresses in the process are the addresses that the kernel gets. So a
generic address needs no case distinction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

WARP = 32
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SHARED_BYTES = 232 * 1024
FIRST_SHARED = 1024  # what the driver keeps in front


class Trap(Exception):
    """A kernel did what it must not do."""


def place_name(index: int) -> str:
    """Name of a place of the player's memory for a reader."""
    if 0 <= index < SHARED_BYTES:
        return f"shared byte {index - FIRST_SHARED}"
    return f"byte {index} of the player's memory"


# The state of a byte, as bits.
INSIDE = 1  # of a tensor, a variable or a window
WRITTEN = 2
ONCE = 4  # may be written once
SETTLED = 8  # no asynchronous copy into it is on its way
OPEN = 16  # may be written
READABLE = INSIDE | WRITTEN | SETTLED
WRITABLE = INSIDE | SETTLED | OPEN

GAP = 256  # bytes between tensors, that belong to none


def spread(bits: int, size: int) -> int:
    """The same bits in every byte of a word."""
    return int.from_bytes(bytes([bits]) * size, "little")


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


class Memory:
    """bytes: for tensors, a power of two in all.

    `place` copies a tensor in, `empty` makes one that nobody has written; both return a tensor over
    the player's memory. Outputs declared `once` must not be written twice; inputs not at all.
    """

    INPUT = READABLE  # the state of what is there and may not be written

    def __init__(self, size: int = 1 << 23, threads: int = 1024, local_bytes: int = 4096) -> None:
        self.local_bytes, self.threads = local_bytes, threads
        self.shared = 0
        self.parameters = self.shared + SHARED_BYTES
        self.local = self.parameters + (1 << 14)
        self.first_tensor = -(-(self.local + threads * local_bytes) // 4096) * 4096
        self.size = 1 << (self.first_tensor + size - 1).bit_length()
        raw = np.zeros(self.size + 4096, np.uint8)
        skip = -raw.ctypes.data % 4096
        self.bytes = raw[skip : skip + self.size]
        self.state = np.zeros(self.size, np.uint8)
        self.base = self.bytes.ctypes.data
        self.words = {size: self.bytes.view(dtype) for size, dtype in WORDS.items()}
        self.states = {size: self.state.view(dtype) for size, dtype in WORDS.items()}
        self.state[self.local : self.first_tensor] = READABLE | OPEN
        self._next = self.first_tensor + GAP
        self._races: dict[int, Races] = {}
        self.races = self.races_of(1)

    def races_of(self, warps: int) -> Races:
        """The races of blocks of so many warps, one for all kernels."""
        if warps not in self._races:
            self._races[warps] = Races(warps, self.size)
        return self._races[warps]

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
        """Free behind the block the tensors that are made inside."""
        before = self._next
        yield
        self.state[before : self._next] = 0
        self._next = before

    def mark(self, tensor: Tensor, state: int) -> None:
        """Set the state of a tensor's bytes, and of no others between them."""
        at = tensor.data_ptr() - self.base
        size = tensor.element_size()
        shape, strides = (*tensor.shape, size), (*(s * size for s in tensor.stride()), 1)
        if tensor.numel():
            torch.from_numpy(self.state).as_strided(shape, strides, at).fill_(state)

    def written(self, tensor: Tensor) -> Tensor:
        """Which elements have been written in full, as booleans of the tensor's shape."""
        at = tensor.data_ptr() - self.base
        size = tensor.element_size()
        shape, strides = (*tensor.shape, size), (*(s * size for s in tensor.stride()), 1)
        states = torch.from_numpy(self.state).as_strided(shape, strides, at)
        return ((states & WRITTEN) != 0).all(-1)

    def start_block(self, races: Races, shared: int, parameters: bytes) -> None:
        """Make shared memory that many fresh bytes, and write the parameters."""
        if FIRST_SHARED + shared > SHARED_BYTES:
            raise Trap(f"{shared} bytes of shared memory")
        first = self.shared + FIRST_SHARED
        self.state[self.shared : self.parameters] = 0
        self.state[first : first + shared] = INSIDE | SETTLED | OPEN
        self.bytes[first : first + shared] = 0xFF
        self.state[self.parameters : self.local] = 0
        self.state[self.parameters : self.parameters + len(parameters)] = READABLE
        self.bytes[self.parameters : self.parameters + len(parameters)] = np.frombuffer(
            parameters, np.uint8
        )
        self.races = races
        races.clear()

    def locate(self, index: np.ndarray, size: int, alignment: int) -> np.ndarray:
        """Check that places in the array (uint64, may wrap) are inside it and aligned."""
        together = int(np.bitwise_or.reduce(index))
        if together >= self.size:
            inside = index + np.uint64(size) <= self.size
            if not inside.all():
                raise Trap(f"{self._which(index, ~inside)} is outside of every tensor")
        if together & (alignment - 1):
            wrong = (index & np.uint64(alignment - 1)) != 0
            raise Trap(f"{self._which(index, wrong)} is not a multiple of {alignment}")
        return index.view(np.int64)

    def check_read(self, index: np.ndarray, size: int) -> np.ndarray:
        """States found."""
        states = self.states[size].take(index >> size.bit_length() - 1)
        want = spread(READABLE, size)
        if int(np.bitwise_and.reduce(states)) & want != want:
            self._refuse(index, size, states, READABLE, "read")
        return states

    def check_write(self, index: np.ndarray, size: int) -> np.ndarray:
        """States found, to be handed to `wrote`."""
        states = self.states[size].take(index >> size.bit_length() - 1)
        want = spread(WRITABLE, size)
        if int(np.bitwise_and.reduce(states)) & want != want:
            self._refuse(index, size, states, WRITABLE, "write")
        return states

    def wrote(self, index: np.ndarray, size: int, states: np.ndarray) -> None:
        once = spread(ONCE, size)
        if int(np.bitwise_or.reduce(states)) & once:
            if len(np.unique(index)) < len(index):
                raise Trap("lanes write the same byte of an output that may be written once")
            states = states & ~((states & states.dtype.type(once)) << states.dtype.type(2))
        self.states[size][index >> size.bit_length() - 1] = states | states.dtype.type(
            spread(WRITTEN, size)
        )

    def _refuse(
        self, index: np.ndarray, size: int, states: np.ndarray, want: int, verb: str
    ) -> None:
        each = np.ascontiguousarray(states).view(np.uint8).reshape(-1, size)
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
