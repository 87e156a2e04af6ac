"""Faults of a kernel that the player finds, and beside each the near miss that is right."""

from __future__ import annotations

import pytest
import torch

from tests.ptx.evaluate import HEADER
from tests.ptx.layout import Trap
from tests.ptx.memory import Memory
from tests.ptx.parse import UnknownForm
from tests.ptx.player import Player

pytestmark = pytest.mark.full
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
    assert play(STAGE + "cp.async.wait_all;" + READ).tolist() == list(range(COUNT))
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
