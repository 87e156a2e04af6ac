"""Floating-point arithmetic: f64, f32, f16, bf16 and their pairs.

Exact operations are rounded once, as IEEE 754 has it; the approximate ones return the float32 that
is nearest to the exact result, which is inside the ISA's bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.lanes import Group, Registers
from tests.ptx.parse import Instruction, Operand, UnknownForm
from tests.ptx.rounding import (
    flushed,
    fma32,
    fma64,
    from_bf16,
    fused,
    odd_sum,
    round_to,
)

FLOATS = {"f16", "bf16", "f32", "f64"}
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}
MODES = ("rn", "rz", "rm", "rp")
Operation = Callable[..., np.ndarray]


def reader(
    registers: Registers, operand: Operand, type_: str, flush: bool = False
) -> Callable[[], np.ndarray]:
    """The operand's values; bf16 as float32."""
    if operand.negated:
        raise UnknownForm("a negated operand")
    array = registers.read(operand, type_)
    if type_ == "bf16":
        return lambda: from_bf16(array)
    if flush:
        return lambda: flushed(array)
    return lambda: array


def elementwise(
    instruction: Instruction, registers: Registers, type_: str, flush: bool, operation: Operation
) -> Action:
    """operation: of float arrays (bf16 as float32), to an array of the type, or bf16 as bits."""
    if type_ in PAIRS:
        return _pairwise(instruction, registers, PAIRS[type_], operation)
    inputs = [reader(registers, o, type_, flush) for o in instruction.operands[1:]]
    d = registers.write(instruction.operands[0], type_)

    def run(group: Group) -> None:
        result = operation(*(x() for x in inputs))
        put(d, flushed(result) if flush else result, group)

    return run


def _pairwise(
    instruction: Instruction, registers: Registers, type_: str, operation: Operation
) -> Action:
    inputs = sources(instruction, registers, ("b32",) * (len(instruction.operands) - 1))
    d = registers.write(instruction.operands[0], "b32")

    def run(group: Group) -> None:
        halves = [np.ascontiguousarray(x).view(np.uint16) for x in inputs]
        values = [from_bf16(h) if type_ == "bf16" else h.view(np.float16) for h in halves]
        result = np.ascontiguousarray(operation(*values))
        put(d, result.view(np.uint32), group)

    return run


def _wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float64) for x in arrays]


def _modes(instruction: Instruction) -> tuple[str, str, bool, Modifiers]:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    return type_, modifiers.take(*MODES) or "rn", bool(modifiers.take("ftz")), modifiers


@form("fma")
def fma(instruction: Instruction, registers: Registers) -> Action:
    type_, mode, flush, modifiers = _modes(instruction)
    modifiers.done()
    if type_ == "f64" and mode == "rn":
        return elementwise(instruction, registers, type_, False, fma64)
    if type_ == "f32" and mode == "rn":
        return elementwise(instruction, registers, type_, flush, fma32)
    single = PAIRS.get(type_, type_)
    if single not in ("f32", "f16", "bf16") or (single != "f32" and (mode != "rn" or flush)):
        raise refuse(instruction)
    return elementwise(
        instruction, registers, type_, flush, lambda a, b, c: fused(*_wide(a, b, c), single, mode)
    )


def add(instruction: Instruction, registers: Registers) -> Action:
    type_, mode, flush, modifiers = _modes(instruction)
    saturate = bool(modifiers.take("sat"))
    modifiers.done()
    sign = 1.0 if instruction.opcode == "add" else -1.0
    ufunc = np.add if sign > 0 else np.subtract
    plain = mode == "rn" and not (flush or saturate)
    if type_ in ("f32", "f64") and plain:
        a, b = sources(instruction, registers, (type_, type_))
        d = registers.write(instruction.operands[0], type_)
        return lambda group: ufunc(a, b, out=d, where=group.where)
    single = PAIRS.get(type_, type_)
    if single not in ("f32", "f16", "bf16") or (single != "f32" and not plain):
        raise refuse(instruction)

    def operation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = _wide(a, b)
        result = round_to(odd_sum(x, sign * y), single, mode)
        return saturated(result) if saturate else result

    return elementwise(instruction, registers, type_, flush, operation)


def saturated(x: np.ndarray) -> np.ndarray:
    """In [0, 1]; a NaN becomes 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)


def mul(instruction: Instruction, registers: Registers) -> Action:
    if instruction.opcode == "mad":
        return fma(instruction, registers)
    type_, mode, flush, modifiers = _modes(instruction)
    saturate = bool(modifiers.take("sat"))
    modifiers.done()
    plain = mode == "rn" and not (flush or saturate)
    if type_ in ("f32", "f64") and plain:
        a, b = sources(instruction, registers, (type_, type_))
        d = registers.write(instruction.operands[0], type_)
        return lambda group: np.multiply(a, b, out=d, where=group.where)
    single = PAIRS.get(type_, type_)
    if single not in ("f32", "f16", "bf16") or (single != "f32" and not plain):
        raise refuse(instruction)

    def operation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = _wide(a, b)
        result = round_to(x * y, single, mode)
        return saturated(result) if saturate else result

    return elementwise(instruction, registers, type_, flush, operation)


def div(instruction: Instruction, registers: Registers) -> Action:
    """div.full and div.approx may be 2 ulp off; here they are rounded to nearest."""
    type_, mode, flush, modifiers = _modes(instruction)
    modifiers.take("full", "approx")
    modifiers.done()
    if type_ not in ("f32", "f64") or mode != "rn" or instruction.opcode == "rem":
        raise refuse(instruction)
    return elementwise(instruction, registers, type_, flush, np.divide)


def extreme(instruction: Instruction, registers: Registers) -> Action:
    """The other operand where one is a NaN, unless .NaN is asked for; -0 is below +0."""
    type_, _, flush, modifiers = _modes(instruction)
    propagate = bool(modifiers.take("NaN"))
    modifiers.done()
    single = PAIRS.get(type_, type_)
    if single not in FLOATS:
        raise refuse(instruction)
    least = instruction.opcode == "min"
    ufunc = {
        (True, False): np.fmin, (True, True): np.minimum,
        (False, False): np.fmax, (False, True): np.maximum,
    }[least, propagate]  # fmt: skip

    def operation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = ufunc(a, b)
        zeros = (a == 0) & (b == 0)
        if zeros.any():
            negative = np.signbit(a) | np.signbit(b) if least else np.signbit(a) & np.signbit(b)
            zero = np.where(negative, result.dtype.type(-0.0), result.dtype.type(0.0))
            result = np.where(zeros, zero, result)
        return _bits(result, single)

    return elementwise(instruction, registers, type_, flush, operation)


def _bits(x: np.ndarray, type_: str) -> np.ndarray:
    """Float32 that holds bf16, as its bits; other types as they are."""
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if type_ == "bf16" else x


def negate(instruction: Instruction, registers: Registers) -> Action:
    type_, _, flush, modifiers = _modes(instruction)
    modifiers.done()
    single = PAIRS.get(type_, type_)
    if single not in FLOATS:
        raise refuse(instruction)
    ufunc = np.negative if instruction.opcode == "neg" else np.absolute
    if type_ in ("f32", "f64") and not flush:
        (a,) = sources(instruction, registers, (type_,))
        d = registers.write(instruction.operands[0], type_)
        return lambda group: ufunc(a, out=d, where=group.where)
    return elementwise(instruction, registers, type_, flush, lambda a: _bits(ufunc(a), single))


@form("copysign")
def copysign(instruction: Instruction, registers: Registers) -> Action:
    """The magnitude of the second source with the sign of the first."""
    type_, _, _, modifiers = _modes(instruction)
    modifiers.done()
    return elementwise(instruction, registers, type_, False, lambda a, b: np.copysign(b, a))


@form("testp")
def testp(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    tests = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
    }  # fmt: skip
    name = modifiers.take(*tests)
    modifiers.done()
    if not name or type_ not in ("f32", "f64"):
        raise refuse(instruction)
    a = registers.read(instruction.operands[1], type_)
    p = registers.write(instruction.operands[0], "pred")
    return lambda group: put(p, tests[name](a), group)


def _reciprocal64(x: np.ndarray) -> np.ndarray:
    """rcp.approx.ftz.f64: the low half of the result is zero, subnormals are."""
    result = 1.0 / np.where(np.abs(x) < 2.0**-1022, np.copysign(0.0, x), x)
    result = np.where(np.abs(result) < 2.0**-1022, np.copysign(0.0, result), result)
    return (result.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip


@form(*FUNCTIONS)
def function(instruction: Instruction, registers: Registers) -> Action:
    name = instruction.opcode
    type_, mode, flush, modifiers = _modes(instruction)
    approximate = bool(modifiers.take("approx"))
    modifiers.done()
    if type_ == "f64" and name == "rcp" and approximate:
        return elementwise(instruction, registers, type_, False, _reciprocal64)
    if mode != "rn" or (not approximate and name not in ("rcp", "sqrt")):
        raise refuse(instruction)
    exact = FUNCTIONS[name]
    if type_ == "f64" and not approximate:
        return elementwise(instruction, registers, type_, False, exact)
    if type_ != "f32":
        raise refuse(instruction)
    return elementwise(
        instruction, registers, type_, flush, lambda x: exact(x.astype(np.float64)).astype("f4")
    )
