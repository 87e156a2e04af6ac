"""The reader of machine code finds known faults."""

from __future__ import annotations

import pytest

from tests.helpers.sass import (
    divisions,
    hazards,
    loops,
    matrix_loops,
    narrow_loads,
    parse,
    tensor_clocks,
)

SHARED_A = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
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


@pytest.mark.parametrize(
    "line",
    [
        "LDS.64 R6, [R3]",  # the last registers of A
        "@P0 MOV R4, R60",
        "IMAD.WIDE R6, R2, 0x2, R60",
        "LDSM.16.M88.4 R4, [R3]",
        "FADD R24, R70, R71",  # the accumulator
        "STS.128 [R3], R52",  # a part of the sum that may not be there yet
    ],
)
def test_a_register_in_flight_is_not_touched(line: str) -> None:
    assert pairs(REGISTER_A, line, WAIT) == {(0, 1)}
    assert pairs(REGISTER_A, WAIT, line) == set()


@pytest.mark.parametrize(
    "line",
    [
        "FADD R8, R4, R5",  # reading A is allowed
        "STG.E.128 desc[UR6][R60.64], R56",
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24",  # the same sum goes on
    ],
)
def test_what_is_harmless_is_not_reported(line: str) -> None:
    assert pairs(REGISTER_A, line, WAIT) == set()


def test_an_operand_that_is_still_being_computed_is_reported() -> None:
    uses = "HGMMA.64x64x16.F32.BF16 R64, R24, gdesc[UR12], R64, gsb0"
    assert pairs(SHARED_A, uses, WAIT) == {(0, 1)}


def test_a_wait_covers_whole_groups_oldest_first() -> None:
    lines = [
        "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24",  # the first group has two
        "HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR8], R24, gsb0",
        "HGMMA.64x64x16.F32.BF16 R24, R12, gdesc[UR8], R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1",
        "MOV R4, RZ",
        "MOV R8, RZ",
        "MOV R12, RZ",
    ]
    assert pairs(*lines) == {(2, 6)}
    open_group = [line.replace(", gsb0", "") for line in lines]
    assert pairs(*open_group) == {(0, 4), (1, 5), (2, 6)}


def test_the_next_round_of_a_loop_is_seen() -> None:
    """The write stands before the matrix instruction and comes after it."""
    lines = ["MOV R4, R60", REGISTER_A, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "@P0 BRA 0x0", WAIT]
    assert pairs(*lines) == {(1, 0)}
    assert pairs(*lines[:2], WAIT, *lines[3:]) == set()


def test_both_ways_of_a_branch_are_seen() -> None:
    lines = [REGISTER_A, "@!P0 BRA 0x40", WAIT, "BRA 0x50", "MOV R5, RZ", "MOV R6, RZ"]
    assert pairs(*lines) == {(0, 4), (0, 5)}
    assert pairs(*lines[:4], "EXIT", lines[5]) == set()


def test_a_predicated_wait_is_refused_where_it_may_not_happen() -> None:
    assert pairs(REGISTER_A, "@P0 BRA 0x30", WAIT, "MOV R4, RZ") == {(0, 3)}


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
