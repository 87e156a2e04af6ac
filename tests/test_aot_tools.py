"""The readers of machine code find faults that are known beforehand, compiled or written down."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
import triton.language as tl  # noqa: E402

from tests.helpers.sass import (  # noqa: E402
    divisions,
    hazards,
    loops,
    matrix_loops,
    narrow_loads,
    parse,
    register_operand,
    tensor_clocks,
)
from tests.helpers.triton_tools import compile_ahead  # noqa: E402  (it imports Triton)

pytestmark = pytest.mark.full


@triton.jit
def matmul_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    col = tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + row * N + col), tl.load(b_ptr + row * N + col))
    tl.store(out_ptr + row * N + col, product)


@triton.jit
def computed_operand_kernel(a_ptr, b_ptr, out_ptr, steps, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    col = tl.arange(0, N)[None, :]
    total = tl.zeros((N, N), dtype=tl.float32)
    for _ in range(steps):
        a = tl.exp(tl.load(a_ptr + row * N + col).to(tl.float32))
        total = tl.dot(a.to(tl.bfloat16), tl.load(b_ptr + row * N + col), total)
        a_ptr += N * N
        b_ptr += N * N
    tl.store(out_ptr + row * N + col, total)


@triton.jit
def running_sum_kernel(in_ptr, out_ptr, count, stride, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(in_ptr + offs * stride, mask=offs < count, other=0.0)
    tl.store(out_ptr + offs, tl.associative_scan(value, 0, _add), mask=offs < count)


@triton.jit
def _add(a, b):
    return a + b


def test_an_operand_in_registers_is_seen() -> None:
    """A value computed between load and product is multiplied from registers."""
    signature = {"a_ptr": "*bf16:16", "b_ptr": "*bf16:16", "out_ptr": "*fp32:16", "steps": "i32"}
    computed = compile_ahead(computed_operand_kernel, signature, {"N": 64}, 90, num_warps=4)
    (loop,) = matrix_loops(computed.code)
    assert any(register_operand(line) for line in loop)
    assert sum(tensor_clocks([line]) for line in loop) == 2 * 64**3 / 4096
    del signature["steps"]
    loaded = compile_ahead(matmul_kernel, signature, {"N": 64}, 90, num_warps=4)
    assert loaded.count("HGMMA") > 0
    assert not any(register_operand(line) for line in loaded.code)


def test_spills_are_seen() -> None:
    """One warp scans 8192 numbers: 256 a thread, which has 255 registers."""
    signature = {"in_ptr": "*fp32:16", "out_ptr": "*fp32:16", "count": "i32", "stride": "i32"}
    narrow = compile_ahead(running_sum_kernel, signature, {"BLOCK": 128}, 90, num_warps=1)
    wide = compile_ahead(running_sum_kernel, signature, {"BLOCK": 8192}, 90, num_warps=1)
    assert narrow.local == narrow.stack == 0
    assert wide.local > 0
    assert wide.stack > 0


# ---- written down -----------------------------------------------------------------------------

REGISTER_A = "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def program(*lines: str) -> str:
    """Lines at addresses 0x0000, 0x0010, ..., as cuobjdump prints them."""
    return "".join(
        f"        /*{16 * i:04x}*/                   {line} ;      /* 0x000fe200078e00ff */\n"
        for i, line in enumerate(lines)
    )


def pairs(*lines: str) -> set[tuple[int, int]]:
    """The places of the matrix instruction and of the line that disturbs it."""
    found = hazards(parse(program(*lines, "EXIT")))
    return {(h.multiply.address // 16, h.line.address // 16) for h in found}


def test_a_register_in_flight_is_not_touched() -> None:
    for line in (
        "LDS.64 R6, [R3]",  # the last registers of A
        "@P0 MOV R4, R60",
        "LDSM.16.M88.4 R4, [R3]",
        "FADD R24, R70, R71",  # the accumulator
        "STS.128 [R3], R52",  # a part of the sum that may not be there yet
    ):
        assert pairs(REGISTER_A, line, WAIT) == {(0, 1)}
        assert pairs(REGISTER_A, WAIT, line) == set()
        assert pairs(REGISTER_A, "@P0 BRA 0x30", WAIT, line) == {(0, 3)}
    for harmless in (
        "FADD R8, R4, R5",  # reading A is allowed
        "STG.E.128 desc[UR6][R60.64], R56",
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24",  # the same sum goes on
    ):
        assert pairs(REGISTER_A, harmless, WAIT) == set()


def test_loops_and_what_is_in_them() -> None:
    body = [
        "LDGSTS.E.BYPASS.128 [R3], desc[UR6][R2.64]",
        "LDGSTS.E.64 [R3], desc[UR6][R2.64], P1",
        "@P1 LDG.E.U16 R9, desc[UR6][R2.64]",
        "I2F.U32.RP R9, R8",
        "HGMMA.64x160x16.F32.BF16 R24, gdesc[UR8], R24",
        "HGMMA.64x64x8.F32.TF32 R24, gdesc[UR8], R24, gsb0",
        WAIT,
        "@P0 BRA 0x10",
    ]
    code = parse(program("MOV R1, RZ", *body, "IADD3 R3, R3, 0x1, RZ", "@P1 BRA 0x90", "EXIT"))
    assert [[line.address for line in loop] for loop in loops(code)] == [
        list(range(0x10, 0x90, 0x10)), [0x90, 0xA0],
    ]  # fmt: skip
    (found,) = matrix_loops(code)
    assert [line.name for line in narrow_loads(found)] == ["LDGSTS.E.64", "LDG.E.U16"]
    assert [line.name for line in divisions(found)] == ["I2F.U32.RP"]
    assert tensor_clocks(found) == 64 * 160 * 16 * 2 / 4096 + 64 * 64 * 8 * 2 / 2048
