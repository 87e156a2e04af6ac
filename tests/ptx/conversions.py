"""Conversions between numbers: cvt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.floats import FLOATS, PAIRS, reader, saturated
from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.parse import Instruction
from tests.ptx.rounding import flushed, round_to

_INTEGERS = {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"}
_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@form("cvt")
def cvt(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    source, target = modifiers.type(), modifiers.type()
    mode = modifiers.take("rn", "rz", "rm", "rp", "rna", *_TO_INTEGER)
    flush, saturate = bool(modifiers.take("ftz")), bool(modifiers.take("sat"))
    modifiers.done()
    if target in PAIRS and source == "f32":
        return _narrowed_pair(instruction, registers, PAIRS[target], mode)
    convert = _conversion(source, target, mode, saturate)
    if convert is None:
        raise refuse(instruction)
    if source in _INTEGERS:
        a = registers.read(instruction.operands[1], source)
        value: Callable[[], np.ndarray] = lambda: a  # noqa: E731
    else:
        value = reader(registers, instruction.operands[1], source, flush and source == "f32")
    write = registers.write_extended(instruction.operands[0], target)
    flush_result = flush and target == "f32"

    def run(group: Group) -> None:
        result = convert(value())
        write(group.lanes, (flushed(result) if flush_result else result)[group.lanes])

    return run


def _conversion(
    source: str, target: str, mode: str, saturate: bool
) -> Callable[[np.ndarray], np.ndarray] | None:
    dtype = DTYPES.get(target)
    if source in _INTEGERS and target in _INTEGERS and not mode:
        if saturate:
            return lambda x: _clipped(x, np.dtype(dtype))
        return lambda x: x.astype(dtype)
    if source in FLOATS and target in _INTEGERS and mode in _TO_INTEGER:
        return lambda x: _to_integer(_TO_INTEGER[mode](x.astype(np.float64)), np.dtype(dtype))
    if source in _INTEGERS and target in FLOATS and mode == "rn" and not saturate:
        if target in ("f32", "f64", "f16"):
            return lambda x: x.astype(dtype)
        return (lambda x: round_to(x.astype(np.float64), target)) if source[1:] != "64" else None
    if source in FLOATS and mode in _TO_INTEGER and source == target != "bf16" and not saturate:
        return lambda x: _TO_INTEGER[mode](x)
    if source in FLOATS and target in FLOATS | {"tf32"}:
        return _between_floats(source, target, mode, saturate)
    return None


def _between_floats(
    source: str, target: str, mode: str, saturate: bool
) -> Callable[[np.ndarray], np.ndarray] | None:
    order = ["bf16", "f16", "tf32", "f32", "f64"]
    narrowing = order.index(target) < order.index(source)
    if source == target == "f32" and saturate and not mode:
        return saturated
    if saturate or narrowing != bool(mode) or mode in _TO_INTEGER:
        return None
    if mode == "rna" and target != "tf32":
        return None
    if target == "f64" or (target == "f32" and not narrowing):
        return lambda x: x.astype(np.float64 if target == "f64" else np.float32)
    if not narrowing:  # between f16 and bf16
        return None
    return lambda x: round_to(x.astype(np.float64), target, mode)


def _clipped(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    ends = np.iinfo(dtype)
    low = max(int(ends.min), int(np.iinfo(x.dtype).min))
    high = min(int(ends.max), int(np.iinfo(x.dtype).max))
    return np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(dtype)


def _to_integer(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Beyond the range its end; a NaN is 0."""
    ends = np.iinfo(dtype)
    inside = np.where((x > float(ends.min)) & (x < float(ends.max)), x, 0.0).astype(dtype)
    result = np.where(x >= float(ends.max), dtype.type(ends.max), inside)
    return np.where(x <= float(ends.min), dtype.type(ends.min), result)


def _narrowed_pair(instruction: Instruction, registers: Registers, type_: str, mode: str) -> Action:
    """The first source becomes the high half."""
    if mode not in ("rn", "rz"):
        raise refuse(instruction)
    high, low = sources(instruction, registers, ("f32", "f32"))
    d = registers.write(instruction.operands[0], "b32")

    def run(group: Group) -> None:
        both = np.stack((low, high), 1).reshape(-1).astype(np.float64)
        put(d, np.ascontiguousarray(round_to(both, type_, mode)).view(np.uint32), group)

    return run
