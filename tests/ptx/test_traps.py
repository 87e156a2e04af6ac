"""Each trap of the player springs for a fault, and not for the near miss."""

from __future__ import annotations

import pytest
import torch

from tests.ptx.memory import Memory, Trap
from tests.ptx.parse import UnknownForm
from tests.ptx.player import Player

pytestmark = pytest.mark.full
COUNT = 64  # two warps
# %r4 points to the lane's word of the tile, %r5 to that of the other warp, %rd3 to that of the
# input, %rd4 to that of the output.
PROLOGUE = """
.version 8.0
.target sm_80
.address_size 64
.entry k(.param .u64 in, .param .u64 out) {
.reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %h<4>; .reg .pred %p<4>; .reg .f32 %f<9>;
.shared .align 128 .b8 tile[4096];
ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
mov.u32 %r1, %tid.x;
mov.u32 %r2, tile;
shl.b32 %r3, %r1, 2;
add.u32 %r4, %r2, %r3;
xor.b32 %r5, %r3, 128; add.u32 %r5, %r5, %r2;
mad.wide.u32 %rd3, %r1, 4, %rd1;
mad.wide.u32 %rd4, %r1, 4, %rd2;
setp.lt.u32 %p1, %r1, 32; setp.eq.u32 %p2, %r1, 0;
"""
COPY = "ld.global.f32 %f1, [%rd3]; st.global.f32 [%rd4], %f1;"
STAGE = "cp.async.ca.shared.global [%r4], [%rd3], 4; cp.async.commit_group;"
WAIT = "cp.async.wait_group 0;"
READ = "ld.shared.f32 %f1, [%r4]; st.global.f32 [%rd4], %f1;"
WRITE = "cvt.rn.f32.u32 %f2, %r1; st.shared.f32 [%r4], %f2;"
READ_OTHER = "ld.shared.f32 %f1, [%r5];"
SHUFFLE = "shfl.sync.idx.b32 %r6, %r1, 0, 31, -1;"

# A fault, the words of its trap, and what is right.
TRAPS = [
    ("ld.global.f32 %f1, [%rd4];", "was never written", COPY),
    ("ld.shared.f32 %f1, [%r4];", "shared byte 0 .*was never written", WRITE + READ),
    ("ld.global.f32 %f1, [%rd1+-4];", "outside of every tensor", COPY),
    ("st.shared.f32 [%r4+4092], 0f00000000;", "shared byte 4096 .*outside", WRITE),
    ("st.global.f32 [%rd3], 0f00000000;", "is an input", COPY),
    (COPY + COPY, "written already", COPY),
    ("st.global.f32 [%rd2], 0f00000000;", "same byte", "@%p2 st.global.f32 [%rd2], 0f00000000;"),
    ("ld.global.v2.f32 {%f1, %f2}, [%rd1+4];", "not a multiple of 8", COPY),
    (STAGE + READ, "no wait has covered", STAGE + WAIT + READ),
    (STAGE.replace("cp.async.commit_group;", "") + WAIT + READ, "no wait has covered", COPY),
    (WRITE + READ_OTHER, "race: warp . reads what another", WRITE + "bar.sync 0;" + READ_OTHER),
    ("st.shared.u32 [%r2], %r1;", "race: warp . writes", "st.shared.f32 [%r2], 0f00000000;"),
    (STAGE + "bar.sync 0;" + WAIT + READ_OTHER, "race|no wait",
     STAGE + WAIT + "bar.sync 0;" + READ_OTHER),
    ("@%p1 bra L; bar.sync 0; L:", "is reached by 32 of 64 lanes", "@%p1 bra L; L: bar.sync 0;"),
    ("@%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", "at different barriers", "bar.sync 0;"),
    ("@%p2 " + SHUFFLE, "names 0xf", "@%p1 " + SHUFFLE),
    ("L: add.u32 %r6, %r6, 1; bra L;", "still running", COPY),
]  # fmt: skip


def play(body: str) -> None:
    memory = Memory(1 << 16)
    source = memory.place(torch.arange(COUNT, dtype=torch.float32))
    out = memory.empty((COUNT,), once=True)
    text = f"{PROLOGUE}{body}\nret;\n}}"
    Player(text, memory, steps=10_000).launch("k", (1,), (COUNT,), [source, out])


@pytest.mark.parametrize(("fault", "words", "right"), TRAPS)
def test_a_fault_is_trapped(fault: str, words: str, right: str) -> None:
    with pytest.raises(Trap, match=words):
        play(fault)
    play(right)


@pytest.mark.parametrize(
    "form", ["add.rz.f64 %rd5, %rd5, %rd5;", "bar.sync %r1;", "bar.sync 0, 64;"]
)
def test_what_it_does_not_know(form: str) -> None:
    with pytest.raises(UnknownForm, match=form.split()[0].replace(".", r"\.")):
        play(form)
