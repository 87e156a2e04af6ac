"""The memory that a played kernel sees: one array of bytes, and for every byte what may be done.

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

from tests.ptx.layout import FIRST_SHARED, SHARED_BYTES, WORDS, Trap, place_name
from tests.ptx.races import Races

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
