"""The player's matrix instructions, by the fragment layouts that the ISA's figures define."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.evaluate import evaluate
from tests.ptx.matrices import C16X8, HALVES, SINGLES

pytestmark = pytest.mark.full
LANES = range(32)


def a_halves(lane: int, i: int) -> tuple[int, int]:
    """Row and column of a_i in m16n8k16 (m16n8k8: i < 4), 16 bits."""
    row = lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
    return row, lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)


def b_halves(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4


def a_tf32(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i in (1, 3) else 0), lane % 4 + (4 if i >= 2 else 0)


def b_tf32(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 + (4 if i == 1 else 0), lane // 4


def c_single(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2


def test_every_element_has_the_place_of_the_isa() -> None:
    for lane in LANES:
        for table, place in [
            (HALVES[16][0], a_halves), (HALVES[16][1], b_halves), (HALVES[8][0], a_halves),
            (HALVES[8][1], b_halves), (SINGLES[8][0], a_tf32), (SINGLES[8][1], b_tf32),
            (SINGLES[4][0], a_tf32), (SINGLES[4][1], b_tf32), (C16X8, c_single),
        ]:  # fmt: skip
            for i in range(len(table)):
                assert tuple(table[i, lane]) == place(lane, i)


def bits(matrix: np.ndarray, type_: str) -> np.ndarray:
    single = matrix.astype(np.float32)
    if type_ == "bf16":
        return (single.view(np.uint32) >> 16).astype(np.uint16)
    return single.astype(np.float16).view(np.uint16) if type_ == "f16" else single.view(np.uint32)


def registers(matrix: np.ndarray, type_: str, place: object, count: int) -> list[tuple[str, list]]:
    """A fragment's registers, as sources: from each lane's elements, by the ISA's formula."""
    each = bits(matrix, type_).astype(np.uint64)
    per = 2 if type_ in ("bf16", "f16") else 1
    result = []
    for r in range(count):
        words = []
        for lane in LANES:
            places = [place(lane, per * r + j) for j in range(per)]  # type: ignore[operator]
            words.append(sum(int(each[p]) << 16 * j for j, p in enumerate(places)))
        result.append(("u32", words))
    return result


def product(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, type_: str, k: int, c_type: str = "f32"
) -> np.ndarray:
    """One mma of a (16, k) times b (k, 8) plus c."""
    narrow = type_ == "tf32"
    count_a, count_b = (k // 2, k // 4) if narrow else (k // 4, k // 8)
    sources = registers(a, type_, a_tf32 if narrow else a_halves, count_a)
    sources += registers(b, type_, b_tf32 if narrow else b_halves, count_b)
    sources += registers(c, c_type, c_single, 4 if c_type == "f32" else 2)
    count_c = 4 if c_type == "f32" else 2
    names = iter(f"%s{i}" for i in range(count_a + count_b + 4))
    first, second, third = (
        [next(names) for _ in range(n)] for n in (count_a, count_b, 4 if c_type == "f32" else 2)
    )
    d = [f"%d{i}" for i in range(count_c)]
    lists = ", ".join("{" + ", ".join(names) + "}" for names in (d, first, second, third))
    code = f"mma.sync.aligned.m16n8k{k}.row.col.{c_type}.{type_}.{type_}.{c_type} {lists};"
    words = np.stack(evaluate(code, ["u32"] * count_c, sources))
    result = np.empty((16, 8))
    for lane in LANES:
        for i in range(4):
            if c_type == "f32":
                value = words[i, lane].view(np.float32)
            else:
                value = (words[i // 2, lane] >> 16 * (i % 2)).astype(np.uint16).view(np.float16)
            result[c_single(lane, i)] = value
    return result


@pytest.mark.parametrize(
    ("type_", "k", "c_type"),
    [("bf16", 16, "f32"), ("bf16", 8, "f32"), ("f16", 16, "f32"), ("f16", 16, "f16"),
     ("f16", 8, "f32"), ("tf32", 8, "f32"), ("tf32", 4, "f32")],
)  # fmt: skip
def test_products(type_: str, k: int, c_type: str) -> None:
    """Small integers, whose products and sums are exact, every element another."""
    rng = np.random.default_rng(k)
    a, b = rng.integers(-8, 9, (16, k)), rng.integers(-8, 9, (k, 8))
    c = rng.integers(-99, 100, (16, 8))
    np.testing.assert_array_equal(product(a, b, c, type_, k, c_type), a @ b + c)


def test_every_pair_of_elements_meets() -> None:
    """One element of A and one of B at a time: 16 x 16 x 8 products of m16n8k16, exhaustively."""
    for k in range(16):
        a, b = np.zeros((16, 16)), np.zeros((16, 8))
        a[:, k], b[k] = np.arange(1, 17), 2.0 ** np.arange(8)
        np.testing.assert_array_equal(product(a, b, np.zeros((16, 8)), "bf16", 16), a @ b)


def test_tf32_operands_lose_their_low_bits() -> None:
    a, b = np.full((16, 8), 1 + 2.0**-11), np.zeros((8, 8))
    b[0] = 1
    np.testing.assert_array_equal(product(a, b, np.zeros((16, 8)), "tf32", 8), np.ones((16, 8)))


def test_sums_are_rounded_once() -> None:
    """2^24 and sixteen ones: one after the other they would all be lost."""
    a, b, c = np.ones((16, 16)), np.ones((16, 8)), np.full((16, 8), 2.0**24)
    np.testing.assert_array_equal(product(a, b, c, "bf16", 16), c + 16)


@pytest.mark.parametrize("turned", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, turned: str) -> None:
    """Lane l of matrix j gets elements 2 (l % 4) and the next of row l / 4, or, transposed, of
    column l / 4. The rows lie in a shuffled order."""
    names = ", ".join(f"%d{i}" for i in range(count))
    code = f"""
    .shared .align 16 .b8 rows[512];
    .reg .b32 %at, %row, %k, %v, %w; .reg .pred %p;
    mov.u32 %at, rows;
    shl.b32 %row, %i, 4;  // each lane writes a row of eight numbers: 8 lane, 8 lane + 1, ...
    add.u32 %row, %row, %at;
    mov.u32 %k, 0;
LOOP:
    shl.b32 %v, %i, 3;
    add.u32 %v, %v, %k;
    add.u32 %w, %v, 1;
    shl.b32 %w, %w, 16;
    or.b32 %v, %v, %w;
    st.shared.b32 [%row], %v;
    add.u32 %row, %row, 4;
    add.u32 %k, %k, 2;
    setp.lt.u32 %p, %k, 8;
    @%p bra LOOP;
    bar.sync 0;
    shl.b32 %row, %s0, 4;
    add.u32 %row, %row, %at;
    ldmatrix.sync.aligned.m8n8.x{count}{turned}.shared.b16 {{{names}}}, [%row];
    """
    order = np.random.default_rng(count).permutation(32)
    got = evaluate(code, ["u32"] * count, [("u32", order.tolist())])
    for j in range(count):
        matrix = np.array([8 * order[8 * j + i] + np.arange(8) for i in range(8)])
        if turned:
            matrix = matrix.T
        for lane in LANES:
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert int(got[j][lane]) == low | high << 16


def test_shuffles() -> None:
    lanes = np.arange(32)
    modes = {
        ("bfly", 5, 31): lanes ^ 5, ("down", 3, 31): np.where(lanes + 3 < 32, lanes + 3, lanes),
        ("up", 2, 0): np.where(lanes >= 2, lanes - 2, lanes), ("idx", 7, 31): np.full(32, 7),
        # With width 8 the upper bits of the bound, 0x18, part the warp.
        ("idx", 1, 0x181F): lanes // 8 * 8 + 1,
        ("up", 1, 0x1800): np.where(lanes % 8 >= 1, lanes - 1, lanes),
    }  # fmt: skip
    for (mode, by, bound), expected in modes.items():
        (got,) = evaluate(
            f"shfl.sync.{mode}.b32 %d0, %s0, {by}, {bound}, 0xffffffff;", ["u32"],
            [("u32", lanes.tolist())],
        )  # fmt: skip
        assert got.tolist() == expected.tolist(), mode


def test_votes() -> None:
    truth = [lane % 3 == 0 for lane in LANES]
    (ballot,) = evaluate("vote.sync.ballot.b32 %d0, %s0, 0xffffffff;", ["u32"], [("pred", truth)])
    assert set(ballot.tolist()) == {sum(1 << i for i, t in enumerate(truth) if t)}
    for mode, expected in (("any", True), ("all", False), ("uni", False)):
        (got,) = evaluate(
            f"vote.sync.{mode}.pred %d0, %s0, 0xffffffff;", ["pred"], [("pred", truth)]
        )
        assert set(got.tolist()) == {expected}
    (total,) = evaluate("redux.sync.add.u32 %d0, %s0, 0xffffffff;", ["u32"], [("u32", list(LANES))])
    assert set(total.tolist()) == {sum(LANES)}
