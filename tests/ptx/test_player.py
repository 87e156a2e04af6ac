"""The player itself: each family of instructions against Python's numbers, and each trap.

Beside each fault of a kernel stands the near miss that is right.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch

from tests.ptx.lanes import DTYPES
from tests.ptx.memory import WARP, Memory, Trap
from tests.ptx.parse import SIZES, UnknownForm
from tests.ptx.player import Player

pytestmark = pytest.mark.full
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
MOVED = {1: "u8", 2: "b16", 4: "b32", 8: "b64"}


def _register(prefix: str, i: int, type_: str) -> str:
    return (
        f".reg .{'pred' if type_ == 'pred' else 'b' + str(8 * max(SIZES[type_], 2))} %{prefix}{i};"
    )


@cache
def _player(code: str, results: tuple[str, ...], sources: tuple[str, ...]) -> tuple[Player, Memory]:
    memory = Memory(1 << 18)
    lines = [_register("d", i, t) for i, t in enumerate(results)]
    lines += [_register("s", i, t) for i, t in enumerate(sources)]
    lines += [".reg .b64 %a; .reg .b64 %t; .reg .b32 %i; .reg .b16 %h;", "mov.u32 %i, %tid.x;"]
    arrays = [f"out{i}" for i in range(len(results))] + [f"in{i}" for i in range(len(sources))]
    for i, type_ in enumerate(sources):
        lines += [f"ld.param.u64 %a, [in{i}];", f"mad.wide.u32 %a, %i, {SIZES[type_]}, %a;"]
        if type_ == "pred":
            lines += ["ld.global.u8 %h, [%a];", f"setp.ne.b16 %s{i}, %h, 0;"]
        else:
            lines += [f"ld.global.{MOVED[SIZES[type_]]} %s{i}, [%a];"]
    lines += [code]
    for i, type_ in enumerate(results):
        lines += [f"ld.param.u64 %a, [out{i}];", f"mad.wide.u32 %a, %i, {SIZES[type_]}, %a;"]
        if type_ == "pred":
            lines += [f"selp.u16 %h, 1, 0, %d{i};", "st.global.u8 [%a], %h;"]
        else:
            lines += [f"st.global.{MOVED[SIZES[type_]]} [%a], %d{i};"]
    parameters = ", ".join(f".param .u64 {name}" for name in arrays)
    text = f"{HEADER}.entry one({parameters}) {{\n" + "\n".join(lines) + "\nret;\n}\n"
    return Player(text, memory), memory


def evaluate(
    code: str, results: Sequence[str], sources: Sequence[tuple[str, Sequence[object]]]
) -> list[np.ndarray]:
    """The results %d0, ... that `code` computes of the sources %s0, ..., a value a lane.

    sources: types and values, bits for bf16. Values are repeated to fill warps, the results cut.
    """
    count = len(sources[0][1])
    lanes = -(-count // WARP) * WARP
    player, memory = _player(code, tuple(results), tuple(type_ for type_, _ in sources))
    with memory.borrowed():
        inputs = []
        for type_, values in sources:
            array = np.resize(np.array(values, DTYPES[type_]), lanes)
            inputs.append(memory.place(torch.from_numpy(array.view(np.uint8))))
        outputs = [memory.empty((lanes * SIZES[t],), torch.uint8, once=True) for t in results]
        player.launch("one", (1,), (lanes,), [*outputs, *inputs])
        found = [o.clone().numpy().view(DTYPES[t]) for o, t in zip(outputs, results, strict=True)]
    return [values[:count] for values in found]


# ---- integers ---------------------------------------------------------------------------------

EDGES = [0, 1, 2, 7, 31, 32, 33, 63, 255, 0x7FFF, 0x8000, 2**31 - 1, 2**31, 2**32 - 1, 2**63]
PAIRS = [(a, b) for a in EDGES for b in (*EDGES, 2**64 - 3)]


def wrapped(value: int, type_: str) -> int:
    """value as the integer that the type's bits stand for."""
    bits = int(type_[1:])
    value %= 1 << bits
    return value - (1 << bits) if type_[0] == "s" and value >> (bits - 1) else value


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
    "div": lambda a, b, bits: toward_zero(a, b) if b else -1,
    "rem": lambda a, b, bits: a - b * toward_zero(a, b) if b else -1,
}
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers(type_: str) -> None:
    bits, wide = int(type_[1:]), f"{type_[0]}{2 * int(type_[1:])}"
    a, b = ([wrapped(pair[i], type_) for pair in PAIRS] for i in (0, 1))
    source = [(type_, a), (type_, b)]
    for name, function in BINARY.items():
        if name == "mul.hi" and bits == 64:
            continue
        (got,) = evaluate(f"{name}.{type_} %d0, %s0, %s1;", [type_], source)
        expected = [wrapped(function(x, y, bits), type_) for x, y in zip(a, b, strict=True)]
        assert got.tolist() == expected, name
    if bits < 64:
        (got,) = evaluate(f"mad.wide.{type_} %d0, %s0, %s1, 5;", [wide], source)
        assert got.tolist() == [wrapped(x * y + 5, wide) for x, y in zip(a, b, strict=True)]
    for name, compare in COMPARISONS.items():
        (truth,) = evaluate(f"setp.{name}.{type_} %d0, %s0, %s1;", ["pred"], source)
        assert truth.tolist() == [compare(x, y) for x, y in zip(a, b, strict=True)], name
    for target in ("u16", "s16", "u32", "s32", "u64", "s64"):
        (got,) = evaluate(f"cvt.{target}.{type_} %d0, %s0;", [target], source[:1])
        assert got.tolist() == [wrapped(x, target) for x in a], target


COMPARISONS: dict[str, Callable[..., bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits(bits: int) -> None:
    plain, signed = f"u{bits}", f"s{bits}"
    a, b = ([pair[i] % 2**bits for pair in PAIRS] for i in (0, 1))
    for name, function in LOGIC.items():
        (got,) = evaluate(f"{name}.b{bits} %d0, %s0, %s1;", [plain], [(plain, a), (plain, b)])
        assert got.tolist() == [function(x, y) for x, y in zip(a, b, strict=True)], name
    by = [pair[1] % 80 for pair in PAIRS]
    (left,) = evaluate(f"shl.b{bits} %d0, %s0, %s1;", [plain], [(plain, a), ("u32", by)])
    assert left.tolist() == [(x << n) % 2**bits for x, n in zip(a, by, strict=True)]
    for type_ in (plain, signed):
        values = [wrapped(x, type_) for x in a]
        (right,) = evaluate(f"shr.{type_} %d0, %s0, %s1;", [type_], [(type_, values), ("u32", by)])
        assert right.tolist() == [x >> n for x, n in zip(values, by, strict=True)]


def test_bytes_and_fields() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 2**32, (3, 256)).tolist()
    (got,) = evaluate("prmt.b32 %d0, %s0, %s1, %s2;", ["u32"], [("u32", v) for v in (a, b, c)])
    for result, x, y, selectors in zip(got.tolist(), a, b, c, strict=True):
        both = (x | y << 32).to_bytes(8, "little")
        for i in range(4):
            byte, fill = both[selectors >> 4 * i & 7], selectors >> 4 * i & 8
            assert result >> 8 * i & 255 == ((255 if byte & 0x80 else 0) if fill else byte)
    at, length = rng.integers(0, 40, (2, 256)).tolist()
    for type_ in ("u32", "s32"):
        values = [wrapped(x, type_) for x in a]
        (got,) = evaluate(
            f"bfe.{type_} %d0, %s0, %s1, %s2;", [type_],
            [(type_, values), ("u32", at), ("u32", length)],
        )  # fmt: skip
        for result, x, p, n in zip(got.tolist(), values, at, length, strict=True):
            field = (x >> p) % 2**n
            negative = type_ == "s32" and n and field >> (n - 1)
            assert result == wrapped(field - (2**n if negative else 0), type_)
    low, high = evaluate("mov.b32 {%d0, %d1}, %s0;", ["u16", "u16"], [("u32", [0x12345678])])
    assert (low.tolist(), high.tolist()) == ([0x5678], [0x1234])
    (whole,) = evaluate("mov.b64 %d0, {%s0, %s1};", ["u64"], [("u32", [5]), ("u32", [2**31])])
    assert whole.tolist() == [2**63 + 5]


# ---- floats -----------------------------------------------------------------------------------

# Bits of the significand, with the hidden one, and the least exponent of a normal number.
FORMATS = {"f16": (11, -14), "bf16": (8, -126), "f32": (24, -126)}


def rounded(x: Fraction, type_: str, mode: str = "rn") -> float:
    """x to nearest even (rn), to zero (rz) or down (rm), in the range of the type."""
    if x == 0:
        return 0.0
    bits, least = FORMATS[type_]
    exponent = max(math.frexp(float(x))[1] - 1, least)
    step = Fraction(2) ** (exponent - bits + 1)
    down, rest = divmod(x, step)
    half = Fraction(1, 2) * step
    up = {
        "rn": rest > half or (rest == half and down % 2 == 1),
        "rz": rest > 0 and x < 0,
        "rm": False,
    }[mode]
    return float((down + up) * step)


def as_bits(values: Sequence[float], type_: str) -> np.ndarray:
    single = np.array(values, np.float32)
    if type_ == "bf16":
        return (single.view(np.uint32) >> 16).astype(np.uint16)
    return single.astype({"f16": "f2", "f32": "f4"}[type_]).view({"f16": "u2", "f32": "u4"}[type_])


def draw_floats(seed: int) -> list[float]:
    """Random numbers of many magnitudes, and some with few and with all bits set."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(256) * 2.0 ** rng.integers(-12, 12, 256)
    x[:64] = rng.integers(-9, 9, 64) / 4
    return x.astype(np.float32).tolist()


@pytest.mark.parametrize("code", ["fma.rn", "fma.rm", "add.rz", "add", "sub", "mul"])
def test_a_result_is_rounded_once(code: str) -> None:
    a, b, c = (draw_floats(seed) for seed in (1, 2, 3))
    # Sums in or beside the middle of two values, where rounding twice goes wrong.
    step = 2.0**-23
    a[:4], b[:4], c[:4] = (
        [1 + step] * 4,
        [step / 2, step / 2, 2**-60, -(2**-60)],
        [1, 1, 1, 1 + step],
    )
    name, _, mode = code.partition(".")
    values = {"fma": (a, b, c)}.get(name, (a, b))
    names = ", ".join(f"%s{i}" for i in range(len(values)))
    (got,) = evaluate(f"{code}.f32 %d0, {names};", ["f32"], [("f32", v) for v in values])
    exact = {
        "fma": lambda x, y, z: x * y + z, "add": operator.add, "sub": operator.sub,
        "mul": operator.mul,
    }[name]  # fmt: skip
    for result, *parts in zip(got.tolist(), *values, strict=True):
        expected = exact(*map(Fraction, parts))
        assert result == rounded(expected, "f32", mode or "rn"), parts


@pytest.mark.parametrize("target", ["bf16", "f16"])
def test_narrowing(target: str) -> None:
    values = draw_floats(6)
    half = 2.0 ** -FORMATS[target][0]
    values[:6] = [1 + half, 1 + 3 * half, -1 - half, 1 + half + 2.0**-23, 2.0**-130, 0.0]
    (got,) = evaluate(f"cvt.rn.{target}.f32 %d0, %s0;", ["u16"], [("f32", values)])
    expected = as_bits([rounded(Fraction(v), target) for v in values], target)
    assert got.tolist() == expected.tolist()
    (pair,) = evaluate(
        f"cvt.rn.{target}x2.f32 %d0, %s0, %s1;", ["u32"], [("f32", [1.5]), ("f32", [-2.0])]
    )
    high, low = as_bits([1.5, -2.0], target).tolist()
    assert pair.tolist() == [high << 16 | low]
    (wide,) = evaluate(f"cvt.f32.{target} %d0, %s0;", ["f32"], [("u16", expected.tolist())])
    assert as_bits(wide.tolist(), target).tolist() == expected.tolist()


def test_special_values() -> None:
    nan, inf = math.nan, math.inf
    a, b = [nan, 1.0, inf, 0.0, -0.0, nan], [1.0, nan, -inf, -0.0, 0.0, nan]
    source = [("f32", a), ("f32", b)]
    least, most = (evaluate(f"{n}.f32 %d0, %s0, %s1;", ["f32"], source)[0] for n in ("min", "max"))
    np.testing.assert_array_equal(least, np.array([1, 1, -inf, 0, 0, nan], np.float32))
    assert np.signbit(least[3:5]).all()
    np.testing.assert_array_equal(most, np.array([1, 1, inf, 0, 0, nan], np.float32))
    assert not np.signbit(most[3:5]).any()
    for name, expected in {
        "eq": [0, 0, 0, 1, 1, 0], "ne": [0, 0, 1, 0, 0, 0], "gt": [0, 0, 1, 0, 0, 0],
        "neu": [1, 1, 1, 0, 0, 1], "geu": [1, 1, 1, 1, 1, 1],
    }.items():  # fmt: skip
        (got,) = evaluate(f"setp.{name}.f32 %d0, %s0, %s1;", ["pred"], source)
        assert got.astype(int).tolist() == expected, name
    (sign,) = evaluate("copysign.f32 %d0, %s0, %s1;", ["f32"], [("f32", [-0.0]), ("f32", [3.0])])
    assert sign.tolist() == [-3.0]
    values = [1.5, 2.5, -1.5, -0.5, 3e9, -3e9, nan, inf, -inf]
    (whole,) = evaluate("cvt.rzi.s32.f32 %d0, %s0;", ["s32"], [("f32", values)])
    ends = -(2**31), 2**31 - 1
    assert whole.tolist() == [1, 2, -1, 0, ends[1], ends[0], 0, ends[1], ends[0]]
    (near,) = evaluate("cvt.rni.f32.f32 %d0, %s0;", ["f32"], [("f32", values[:4])])
    assert near.tolist() == [2, 2, -2, 0]
    (inside,) = evaluate("cvt.sat.f32.f32 %d0, %s0;", ["f32"], [("f32", values)])
    assert inside.tolist() == [1, 1, 0, 0, 1, 0, 0, 1, 0]
    small = float(np.uint32(0x80000001).view(np.float32))
    for code, kept in (("add.f32", small), ("add.ftz.f32", -0.0)):
        (got,) = evaluate(f"{code} %d0, %s0, %s1;", ["f32"], [("f32", [small]), ("f32", [-0.0])])
        assert got.tolist() == [kept]
        assert np.signbit(got).all()


@pytest.mark.parametrize(
    ("name", "exact", "low"),
    [
        ("ex2.approx", lambda x: 2.0**x, -100),
        ("lg2.approx", math.log2, 1e-30),
        ("rcp.approx.ftz", lambda x: 1 / x, 1e-30),
        ("sqrt.approx.ftz", math.sqrt, 0),
        ("sqrt.rn", math.sqrt, 0),
    ],
)
def test_functions_are_nearest(name: str, exact: Callable[[float], float], low: float) -> None:
    x = np.random.default_rng(0).uniform(low, 100, 256).astype(np.float32)
    (got,) = evaluate(f"{name}.f32 %d0, %s0;", ["f32"], [("f32", x.tolist())])
    np.testing.assert_array_equal(got, np.array([np.float32(exact(float(v))) for v in x]))


# ---- instructions of a warp -------------------------------------------------------------------


def place(name: str, lane: int, i: int) -> tuple[int, int]:
    """Row and column of number i of a lane's fragment of A, B or C, by the ISA's figures."""
    group, pair = lane // 4, lane % 4 * 2 + i % 2
    if name == "A":
        return group + 8 * (i // 2 % 2), pair + 8 * (i // 4)
    return (pair + 8 * (i // 2), group) if name == "B" else (group + 8 * (i // 2), pair)


@pytest.mark.parametrize("type_", ["bf16", "f16"])
def test_products(type_: str) -> None:
    """Small integers, whose products and sums are exact; and sums are rounded once."""
    rng = np.random.default_rng(1)
    for a, b, c in (
        (
            rng.integers(-8, 9, (16, 16)),
            rng.integers(-8, 9, (16, 8)),
            rng.integers(-99, 99, (16, 8)),
        ),
        (np.ones((16, 16)), np.ones((16, 8)), np.full((16, 8), 2.0**24)),
    ):
        source: list[tuple[str, list[int]]] = []
        for name, matrix, count in (("A", a, 4), ("B", b, 2)):
            bits = as_bits(matrix.reshape(-1), type_).reshape(matrix.shape).astype(np.uint64)
            for r in range(count):
                pairs = [[bits[place(name, i, 2 * r + j)] for j in range(2)] for i in range(WARP)]
                source.append(("u32", [int(low) | int(high) << 16 for low, high in pairs]))
        for r in range(4):
            source.append(("f32", [float(c[place("C", i, r)]) for i in range(WARP)]))
        lists = [range(4), range(4, 6), range(6, 10)]
        given = ", ".join("{" + ", ".join(f"%s{i}" for i in part) + "}" for part in lists)
        code = f"mma.sync.aligned.m16n8k16.row.col.f32.{type_}.{type_}.f32 {{%d0, %d1, %d2, %d3}}, "
        got = evaluate(f"{code}{given};", ["f32"] * 4, source)
        for lane in range(WARP):
            for i in range(4):
                row, column = place("C", lane, i)
                assert got[i][lane] == (a @ b + c)[row, column]


@pytest.mark.parametrize("turned", ["", ".trans"])
def test_ldmatrix(turned: str) -> None:
    """Lane l of matrix j gets elements 2 (l % 4) and the next of row l / 4, or, transposed, of
    column l / 4. The rows lie in a shuffled order."""
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
    ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {{%d0, %d1, %d2, %d3}}, [%row];
    """
    order = np.random.default_rng(4).permutation(WARP)
    got = evaluate(code, ["u32"] * 4, [("u32", order.tolist())])
    for j in range(4):
        matrix = np.array([8 * order[8 * j + i] + np.arange(8) for i in range(8)])
        if turned:
            matrix = matrix.T
        for lane in range(WARP):
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert int(got[j][lane]) == low | high << 16


def test_shuffles() -> None:
    lanes = np.arange(WARP)
    modes = {
        ("bfly", 5, 31): lanes ^ 5, ("idx", 7, 31): np.full(WARP, 7),
        # With width 8 the upper bits of the bound, 0x18, part the warp.
        ("idx", 1, 0x181F): lanes // 8 * 8 + 1,
    }  # fmt: skip
    for (mode, by, bound), expected in modes.items():
        code = f"shfl.sync.{mode}.b32 %d0, %s0, {by}, {bound}, 0xffffffff;"
        (got,) = evaluate(code, ["u32"], [("u32", lanes.tolist())])
        assert got.tolist() == expected.tolist(), mode


# ---- traps ------------------------------------------------------------------------------------

COUNT = 64  # two warps
PROLOGUE = """
.reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %h<4>; .reg .pred %p<4>; .reg .f32 %f<9>;
.shared .align 128 .b8 tile[4096];
ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
mov.u32 %r1, %tid.x;
mov.u32 %r2, tile;
shl.b32 %r3, %r1, 2;
add.u32 %r4, %r2, %r3;          // this lane's word of the tile
mad.wide.u32 %rd3, %r1, 4, %rd1;  // of the input
mad.wide.u32 %rd4, %r1, 4, %rd2;  // of the output
"""


def play(body: str, *, inputs: int = COUNT, outputs: int = COUNT, blocks: int = 1) -> torch.Tensor:
    memory = Memory(1 << 16)
    source = memory.place(torch.arange(inputs, dtype=torch.float32))
    out = memory.empty((outputs,), once=True)
    text = f"{HEADER}.entry k(.param .u64 in, .param .u64 out) {{\n{PROLOGUE}{body}\nret;\n}}"
    Player(text, memory, steps=10_000).launch("k", (blocks,), (COUNT,), [source, out])
    return out


def trapped(body: str, message: str, **sizes: int) -> None:
    with pytest.raises(Trap, match=message):
        play(body, **sizes)


COPY = "ld.global.f32 %f1, [%rd3]; st.global.f32 [%rd4], %f1;"


def test_a_plain_copy() -> None:
    assert play(COPY).tolist() == list(range(COUNT))


def test_unwritten_bytes() -> None:
    trapped("ld.global.f32 %f1, [%rd4];", "was never written")
    trapped("ld.shared.f32 %f1, [%r4];", "shared byte 0 .*was never written")
    play("st.shared.f32 [%r4], 0f00000000; ld.shared.f32 %f1, [%r4];")
    # Two of the four bytes.
    trapped("mov.b16 %h1, 1; st.shared.b16 [%r4], %h1; ld.shared.f32 %f1, [%r4];", "never written")


def test_addresses_outside_of_tensors() -> None:
    trapped(COPY, r"1 more|address .* is outside", inputs=COUNT - 2)
    trapped(COPY, "outside of every tensor", outputs=COUNT - 1)
    trapped("ld.global.f32 %f1, [%rd1+-4];", "outside of every tensor")
    trapped("mov.b64 %rd5, 0; ld.global.f32 %f1, [%rd5];", "outside of every tensor")
    trapped("st.shared.f32 [%r4+4092], 0f00000000;", "shared byte 4096 .*outside")
    trapped("mov.b32 %r5, 0; ld.shared.f32 %f1, [%r5];", "outside")


def test_inputs_are_not_written() -> None:
    trapped("st.global.f32 [%rd3], 0f00000000;", "is an input")


def test_outputs_are_written_once() -> None:
    trapped(COPY + COPY, "written already")
    trapped(COPY, "written already", blocks=2)
    trapped("st.global.f32 [%rd2], 0f00000000;", "same byte")
    play("setp.eq.u32 %p1, %r1, 0; @%p1 st.global.f32 [%rd2], 0f00000000;")


@pytest.mark.parametrize("width", ["v2", "v4"])
def test_misaligned_vectors(width: str) -> None:
    parts = "{" + ", ".join(["%f1", "%f2", "%f3", "%f4"][: int(width[1])]) + "}"
    trapped(f"ld.global.{width}.f32 {parts}, [%rd1+4];", f"not a multiple of {4 * int(width[1])}")
    play(f"ld.global.{width}.f32 {parts}, [%rd1+16];")


STAGE = "cp.async.ca.shared.global [%r4], [%rd3], 4; cp.async.commit_group;"
READ = "ld.shared.f32 %f1, [%r4]; st.global.f32 [%rd4], %f1;"


def test_copies_before_their_wait() -> None:
    trapped(STAGE + READ, "no wait has covered")
    assert play(STAGE + "cp.async.wait_group 0;" + READ).tolist() == list(range(COUNT))
    # The first of two groups is there when one is left on its way; the second is not.
    second = STAGE.replace("[%r4]", "[%r4+1024]")
    both = STAGE + second + "cp.async.wait_group 1;"
    assert play(both + READ).tolist() == list(range(COUNT))
    trapped(both + READ.replace("[%r4]", "[%r4+1024]"), "no wait has covered")
    # Copies that no group holds are not waited for.
    loose = STAGE.replace("cp.async.commit_group;", "")
    trapped(loose + "cp.async.wait_group 0;" + READ, "no wait has covered")
    trapped(STAGE + "st.shared.f32 [%r4], %f1;", "no wait has covered")


def test_copies_are_aligned_and_zero_filled() -> None:
    trapped(STAGE.replace("[%rd3], 4", "[%rd3+4], 8"), "not a multiple of 8")
    trapped("cp.async.cg.shared.global [%r4], [%rd1], 16;", "not a multiple of 16")
    none = "mov.u32 %r5, 0;" + STAGE.replace("[%rd3], 4", "[%rd3], 4, %r5")
    assert play(none + "cp.async.wait_group 0;" + READ).tolist() == [0] * COUNT


OTHER = "xor.b32 %r5, %r3, 128; add.u32 %r5, %r5, %r2;"  # the word of a lane of the other warp
READ_OTHER = "ld.shared.f32 %f1, [%r5];"
WRITE = "cvt.rn.f32.u32 %f2, %r1; st.shared.f32 [%r4], %f2;"


def test_races() -> None:
    trapped(OTHER + WRITE + READ_OTHER, "race: warp . reads what another warp has written")
    play(OTHER + WRITE + "bar.sync 0;" + READ_OTHER)
    again = "bar.sync 0;" + READ_OTHER + WRITE
    trapped(OTHER + WRITE + again, "race: warp . writes what another warp has read")
    trapped("st.shared.u32 [%r2], %r1;", "race: warp . writes what another warp writes")
    # The same value, as Triton stores what it holds in several warps.
    play("st.shared.f32 [%r2], 0f00000000; ld.shared.f32 %f1, [%r2];")
    # Neighbours of a word are no race, nor are lanes of one warp.
    half = "mad.lo.u32 %r6, %r1, 2, %r2; mov.b16 %h1, 1; st.shared.b16 [%r6], %h1;"
    play(half)
    play("xor.b32 %r5, %r3, 4; add.u32 %r5, %r5, %r2;" + WRITE + READ_OTHER)
    play("bar.sync 0;" + OTHER + WRITE + "bar.sync 0; ld.shared.f32 %f1, [%r2]; " + READ_OTHER)


def test_races_in_global_memory() -> None:
    """Lanes of one block, whose outputs are inputs of one another."""
    write = "cvt.rn.f32.u32 %f2, %r1; st.global.f32 [%rd4], %f2;"
    other = "xor.b32 %r5, %r1, 32; mad.wide.u32 %rd5, %r5, 4, %rd2;"
    read = "ld.global.f32 %f1, [%rd5];"
    trapped(other + write + read, "race: warp . reads what another warp has written")
    play(other + write + "bar.sync 0;" + read)


def test_a_copy_of_another_warp_needs_a_barrier_behind_the_wait() -> None:
    wait = "cp.async.wait_group 0;"
    trapped(OTHER + STAGE + wait + READ_OTHER, "race: .*reads what another warp has written")
    trapped(OTHER + STAGE + "bar.sync 0;" + wait + READ_OTHER, "race|no wait")
    play(OTHER + STAGE + wait + "bar.sync 0;" + READ_OTHER)


def test_barriers_that_not_all_reach() -> None:
    some = "setp.lt.u32 %p1, %r1, 32;"
    trapped(some + "@%p1 bra L; bar.sync 0; L:", "is reached by 32 of 64 lanes; lane 0 is not")
    trapped(some + "@%p1 ret; bar.sync 0;", "is reached by 32 of 64 lanes")
    trapped(some + "@%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", "at different barriers")
    play(some + "@%p1 bra L; add.u32 %r5, %r5, 1; L: bar.sync 0;")


def test_whole_warps() -> None:
    load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r2];"
    fill = "st.shared.f32 [%r4], 0f00000000; bar.sync 0;"
    trapped("setp.lt.u32 %p1, %r1, 8; @%p1 " + load, "a part of warp 0")
    play(fill + "setp.lt.u32 %p1, %r1, 32; @%p1 " + load)
    trapped(fill + load.replace("[%r2]", "[%r2+8]"), "not a multiple of 16")
    trapped("setp.lt.u32 %p1, %r1, 8; @%p1 shfl.sync.idx.b32 %r5, %r1, 0, 31, -1;", "names 0xf")


def test_lanes_that_part_meet_again() -> None:
    """Loops of different lengths, a function, and a branch table."""
    assert play("""
        mov.f32 %f1, 0f00000000; mov.u32 %r5, 0;
        L: setp.ge.u32 %p1, %r5, %r1; @%p1 bra E;
        add.f32 %f1, %f1, 0f3F800000; add.u32 %r5, %r5, 1; bra L;
        E: bar.sync 0; st.global.f32 [%rd4], %f1;
    """).tolist() == list(range(COUNT))
    assert play("""
        and.b32 %r5, %r1, 1;
        T: .branchtargets A, B;
        brx.idx %r5, T;
        A: mov.f32 %f1, 0f3F800000; bra E;
        B: mov.f32 %f1, 0f40000000;
        E: bar.sync 0; st.global.f32 [%rd4], %f1;
    """).tolist() == [1.0, 2.0] * (COUNT // 2)


def test_functions() -> None:
    memory = Memory(1 << 16)
    out = memory.empty((COUNT,), torch.int32, once=True)
    text = (
        HEADER
        + """
    .func (.param .b32 result) twice(.param .b32 given) {
        .reg .b32 %r<3>; .reg .pred %p<2>; .local .align 4 .b8 frame[8]; .reg .b64 %rd<3>;
        ld.param.b32 %r1, [given]; mov.u64 %rd1, frame; st.local.u32 [%rd1+4], %r1;
        setp.lt.u32 %p1, %r1, 40; @%p1 bra L; add.u32 %r1, %r1, 1000; L:
        ld.local.u32 %r2, [%rd1+4]; add.u32 %r1, %r1, %r2; st.param.b32 [result], %r1; ret;
    }
    .entry k(.param .u64 out) {
        .reg .b32 %r<4>; .reg .b64 %rd<3>;
        mov.u32 %r1, %tid.x;
        { .param .b32 p; st.param.b32 [p+0], %r1; .param .b32 q;
          call.uni (q), twice, (p); ld.param.b32 %r2, [q+0]; }
        ld.param.u64 %rd1, [out]; mad.wide.u32 %rd1, %r1, 4, %rd1; st.global.u32 [%rd1], %r2;
        ret;
    }
    """
    )
    Player(text, memory).launch("k", (1,), (COUNT,), [out])
    assert out.tolist() == [2 * i + 1000 * (i >= 40) for i in range(COUNT)]


def test_what_it_does_not_know() -> None:
    for form in ("add.rz.f64 %rd5, %rd5, %rd5;", "frobnicate.u32 %r5, %r5;",
                 "cvt.rn.satfinite.f16.f32 %h1, %f1;", "ld.global.b128 %r5, [%rd1];",
                 "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd5}, {%rd5}, {%rd5}, {%rd5};",
                 ):  # fmt: skip
        name = form.split()[0].replace(".", r"\.")
        with pytest.raises(UnknownForm, match=name):
            play(form)


def test_what_runs_for_ever() -> None:
    trapped("L: add.u32 %r5, %r5, 1; bra L;", "still running")
