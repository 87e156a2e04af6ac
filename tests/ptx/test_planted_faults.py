"""Faults planted in the compiled kernels, by edits of their PTX: the player finds each.

docs/played.md has the table of who else finds them. Found means a trap, or a result that the
kernel's law refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.helpers.aot_launches import KERNELS
from tests.helpers.gated_cases import EPS, assert_as_good, make_case
from tests.helpers.nvcc_builds import NVCC
from tests.ptx.cuda_player import CudaPlayer, build_sampler, draw, draw_on_host
from tests.ptx.cuda_player import make_case as make_sampler_case
from tests.ptx.memory import Memory, Trap
from tests.ptx.triton_player import played

pytestmark = pytest.mark.full
ROUNDING = 1e-6  # that the law of images allows (test_played.py)


class Fault(NamedTuple):
    """traps: what the player says; empty if it is the result that differs. count: how many places
    get it, 0 for all."""

    name: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    traps: str
    count: int = 0

    def plant(self, text: str) -> str:
        planted = re.sub(self.pattern, self.replacement, text, count=self.count)
        assert planted != text, f"there is nowhere to plant: {self.name}"
        return planted


def turned(match: re.Match[str]) -> str:
    return match[1] + (".shared" if match[2] else ".trans.shared")


def passed_by(match: re.Match[str]) -> str:
    """The first warp jumps over a barrier."""
    compare = "mov.u32 %ts, %tid.x; setp.lt.u32 %ps, %ts, 32;"
    label = f"$PASSED_{match.start()}"
    return f"{{ .reg .pred %ps; .reg .b32 %ts; {compare} @%ps bra {label}; {match[0]} {label}: }}"


RACE = "race: warp|was never written"
BARRIER = r"bar\.sync\s+0;"
EXCHANGED = (
    "two registers of A are exchanged", r"(mma\.sync[^;]*?\}, )\{\s*(%\w+), (%\w+)",
    r"\1{\3, \2", "",
)  # fmt: skip
SAMPLER_FAULTS = [
    Fault("all barriers are missing", BARRIER, "", RACE),
    Fault("granules of rows are misaligned",
          r"(ld\.global\.v4\.b32 [^;\[]*\[%rd\d+)\]", r"\1+8]", "not a multiple of 16"),
    Fault("granules of weights are those of the next lane",
          r"(ld\.global\.nc\.L1::evict_first\.v4\.b32 [^;\[]*\[%rd\d+)\]", r"\1+16]", ""),
    Fault(*EXCHANGED),
    Fault("two sums are exchanged", r"(mma\.sync\S+\s+)\{(%\w+), (%\w+)", r"\1{\3, \2", ""),
    Fault("a constant of Philox is wrong", r"-766435501|-845247145|3528531795|3449720151",
          "1234567", ""),
    Fault("a pixel is stored beside its place",
          r"(st\.f32|st\.global\.f32)(\s+\[%rd\d+)\]", r"\1\2+4]",
          "outside|already|nobody drew|race"),
    Fault("a warp passes the barriers by", BARRIER, passed_by,
          f"is reached by 224 of 256|different barr|{RACE}"),
]  # fmt: skip
TRITON_FAULTS = [
    Fault("a mask of loads is dropped", r"@%p\d+ (ld\.global[^;]*;)", r"\1",
          "outside of every tensor|was never written"),
    Fault("a mask of stores is dropped", r"@%p\d+ (st\.global[^;]*;)", r"\1",
          "outside of every tensor|already|same byte|race"),
    Fault("all barriers are missing", BARRIER, "", RACE),
    Fault("the first barrier is missing", BARRIER, "", RACE, count=1),
    Fault("matrices are transposed where they should not be, and the other way round",
          r"(ldmatrix\.sync\.aligned\.m8n8\.x\d)(\.trans)?\.shared", turned, ""),
    Fault(*EXCHANGED),
]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Path:
    return build_sampler()


def found_by_trap(fault: Fault, run: Callable[[], object]) -> bool:
    """Whether a run traps, in the words of the fault; one that names a trap must."""
    if not fault.traps:
        run()
        return False
    with pytest.raises(Trap, match=fault.traps):
        run()
    return True


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("fault", SAMPLER_FAULTS, ids=lambda fault: fault.name)
def test_faults_of_the_sampler(fault: Fault, built: Path) -> None:
    player = CudaPlayer(built, make_sampler_case(filters=6, bf16=True), fault.plant)
    drawn: list[torch.Tensor] = []
    if not found_by_trap(fault, lambda: drawn.append(draw(player).images)):
        assert not (drawn[0] - draw_on_host(player).images).abs().max() < ROUNDING


@pytest.mark.parametrize("fault", TRITON_FAULTS, ids=lambda fault: fault.name)
def test_faults_of_triton(fault: Fault) -> None:
    """In the first convolution of a gated block."""
    pytest.importorskip("triton")
    dtype = torch.bfloat16
    case = make_case("down_right", (1, 3, 5), 5, (5,), 0.5, dtype, gains=True)

    def edit(kernel: str, text: str) -> str:
        return fault.plant(text) if kernel == "hidden_kernel" else text

    exact, eager = (case.run("reference", d) for d in (torch.float64, dtype))
    got: list[dict[str, torch.Tensor]] = []
    with played(KERNELS, Memory(1 << 22), edit=edit):
        trapped = found_by_trap(fault, lambda: got.append(case.run("triton", dtype)))
    if not trapped:
        with pytest.raises(AssertionError):
            assert_as_good(got[0], eager, exact, EPS[dtype])
