"""The dictionary in a CIFAR-10 Python archive, read without running what the file names.

A pickle is a program for a stack machine that may call any function. A few of its bytes can ask for
gigabytes. The machine here knows the opcodes of protocols 2 to 5 that these archives use, and calls
nothing: an array is kept as a description, and what it allocates is bounded by the file's length.
The opcodes are those of the standard library's pickletools.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# numpy.core became numpy._core in numpy 2. Protocol 2 writes Python 3's bytes as _codecs.encode.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_MAX_OPCODES = 1 << 20  # an archive of 10,000 labels and names has at most 100,000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"))
_TEXTS = frozenset(
    ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
)
_BYTES = frozenset(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_LITERALS = _NUMBERS | _TEXTS | _BYTES
_IGNORED = frozenset(("PROTO", "FRAME"))


class PickledArray(NamedTuple):
    """An array as the archive describes it: nothing of it is checked against the rest."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    data: bytes | bytearray

    def bytes_array(self) -> NDArray[np.uint8]:
        """Return it as an array of unsigned bytes; ValueError unless `data` fits `shape`."""
        flat = np.frombuffer(self.data, np.uint8)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(eq=False)
class _Call:
    """A call that the archive asks for, and the state that it sets: kept, not made."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickle(content: bytes) -> Any:
    """Return what the pickle builds of dictionaries, lists, tuples, numbers, text and bytes.

    Python 2's strings are decoded as latin-1; keys of dictionaries are text, arrays
    `PickledArray`. Raises ValueError, IndexError, KeyError or TypeError for a damaged pickle,
    ValueError for one that asks for anything else.
    """
    return _array(_Machine().run(content))


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number == _MAX_OPCODES:
                raise ValueError(f"it has more than {_MAX_OPCODES} opcodes")
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name == "STOP":
                return self.stack.pop()
            elif name not in _IGNORED:
                raise ValueError(f"it asks for opcode {name}, which no CIFAR-10 archive needs")
        raise ValueError("it does not end")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"it treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more values than it has made")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_text(key)] = _array(value)

    def find(self, module: Any, name: Any) -> None:
        if (module, name) not in _ADMITTED:
            raise ValueError(f"it asks for {module}.{name}, which no CIFAR-10 archive needs")
        self.stack.append(_Name(name))

    def reduce(self) -> None:
        callee, arguments = self.last(2)
        if not isinstance(callee, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is not a function")
        self.stack.append(_Call(callee.name, arguments))

    def build(self) -> None:
        (state,) = self.last(1)
        self.top(_Call).state = state

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.last(3))),
    "APPEND": lambda m, _: m.append(m.last(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "GLOBAL": lambda m, names: m.find(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find(*m.last(2)),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
}


def _text(key: Any) -> str:
    """Return a key as text: archives written by Python 3 may have keys of bytes."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if isinstance(key, _Call) and key.name == "encode":
        key = key.arguments[0]
    if not isinstance(key, str):
        raise ValueError(f"it has a key of type {type(key).__name__}")
    return key


def _bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, _Call) and data.name == "encode":
        data = data.arguments[0]
    if isinstance(data, str):
        return data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"it has an array whose bytes are a {type(data).__name__}")
    return data


def _array(value: Any) -> Any:
    """Return a description of an array as a `PickledArray`, anything else as it is."""
    if not isinstance(value, _Call) or value.name not in ("_reconstruct", "_frombuffer"):
        return value
    if value.name == "_reconstruct":
        _, shape, dtype, fortran, data = value.state
    else:
        data, dtype, shape, order = value.arguments
        fortran = order == "F"
    if not isinstance(dtype, _Call) or dtype.name != "dtype":
        raise ValueError("it has an array without a dtype")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("it has an array without a shape")
    if not isinstance(fortran, (bool, int)):
        raise ValueError("it has an array without an order")
    return PickledArray(_dtype_name(dtype.arguments[0]), shape, bool(fortran), _bytes(data))


def _dtype_name(code: Any) -> str:
    if isinstance(code, str) and re.fullmatch("b1|[iu][1248]|f[248]", code):
        return np.dtype(code).name
    return ascii(code)[:20] if isinstance(code, str) else type(code).__name__
