"""Faults planted in the compiled kernels, by edits of their PTX: the player finds each.

docs/played.md has the table of who else finds them. Found means a trap, or a result that the
kernel's law refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tests.helpers.aot_launches import KERNELS
from tests.helpers.gated_cases import EPS, assert_as_good, make_case
from tests.helpers.nvcc_builds import NVCC
from tests.ptx.cuda_player import Built, CudaPlayer, build_sampler, draw, draw_on_host
from tests.ptx.cuda_player import make_case as make_sampler_case
from tests.ptx.memory import Memory, Trap
from tests.ptx.triton_player import played

pytestmark = pytest.mark.full
REGISTER = r"%\w+"
ROUNDING = 2e-5  # that the law of bfloat16 images allows (test_played.py)


@dataclass(frozen=True)
class Fault:
    """pattern: replaced where it stands for the nth time in the code of the kernel, or everywhere
    (nth = None). traps: what the player says; empty if it is the result that differs."""

    name: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    traps: str
    nth: int | None = None

    def plant(self, text: str) -> str:
        found = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal found
            found += 1
            wanted = self.nth is None or found == self.nth + 1
            if not wanted:
                return match.group()
            by = self.replacement
            return match.expand(by) if isinstance(by, str) else by(match)

        planted = re.sub(self.pattern, replace, text)
        assert planted != text, f"there is nowhere to plant: {self.name}"
        return planted


def turned(match: re.Match[str]) -> str:
    return match[1] + (".shared" if match[2] else ".trans.shared")


RACE = "race: warp|was never written"
FIRST_TWO = rf"\{{({REGISTER}), ({REGISTER})"
SAMPLER_FAULTS = [
    Fault("all barriers are missing", r"bar\.sync\s+0;", "", RACE),
    Fault("granules of rows are misaligned",
          r"(ld\.global\.v4\.b32 [^;\[]*\[%rd\d+)\]", r"\1+8]", "not a multiple of 16"),
    Fault("granules of weights are those of the next lane",
          r"(ld\.global\.nc\.L1::evict_first\.v4\.b32 [^;\[]*\[%rd\d+)\]", r"\1+16]", ""),
    Fault("two registers of A are exchanged",
          rf"(mma\.sync[^;]*?\}}, ){FIRST_TWO}", r"\1{\3, \2", ""),
    Fault("two sums are exchanged", rf"(mma\.sync\S+\s+){FIRST_TWO}", r"\1{\3, \2", ""),
    Fault("a constant of Philox is wrong", r"-766435501|-845247145|3528531795|3449720151",
          "1234567", ""),
    Fault("a pixel is stored beside its place",
          r"(st\.f32|st\.global\.f32)(\s+\[%rd\d+)\]", r"\1\2+4]",
          "outside|already|nobody drew|race"),
    Fault("a warp passes a barrier by", r"bar\.sync\s+0;",
          "{ .reg .pred %ps; .reg .b32 %ts; mov.u32 %ts, %tid.x; setp.lt.u32 %ps, %ts, 32;"
          " @%ps bra $PASSED; bar.sync 0; $PASSED: }",
          "is reached by 224 of 256|different barr|race", 0),
]  # fmt: skip
PREDICATED = r"@%p\d+ (ld\.global[^;]*;)"
TRITON_FAULTS = [
    Fault("a mask of loads is dropped", PREDICATED, r"\1",
          "outside of every tensor|was never written"),
    Fault("a mask of stores is dropped", r"@%p\d+ (st\.global[^;]*;)", r"\1",
          "outside of every tensor|already|same byte|race"),
    Fault("all barriers are missing", r"bar\.sync\s+0;", "", RACE),
    Fault("the first barrier is missing", r"bar\.sync\s+0;", "", RACE, 0),
    Fault("matrices are transposed where they should not be, and the other way round",
          r"(ldmatrix\.sync\.aligned\.m8n8\.x\d)(\.trans)?\.shared", turned, ""),
    Fault("two registers of A are exchanged",
          rf"(mma\.sync[^;]*?\}}, )\{{ ({REGISTER}), ({REGISTER})", r"\1{\3, \2", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Built:
    return build_sampler()


def but_for_completion(text: str, edit: Callable[[str], str]) -> str:
    """Edit all functions but the kernel that keeps known pixels."""
    kernel = re.compile(r"(?ms)^(?:\.visible )?\.entry \w+Lb1E\w+\(.*?^\}$")
    kept = kernel.findall(text)
    assert len(kept) == 1
    return edit(kernel.sub("\0", text)).replace("\0", kept[0])


def caught(run: Callable[[], None]) -> str:
    """Words of the trap in a run; empty if there is none."""
    try:
        run()
    except Trap as trap:
        return str(trap)
    return ""


def judge(fault: Fault, said: str) -> None:
    """A fault that traps must have been this trap."""
    assert bool(said) == bool(fault.traps), said
    assert re.search(fault.traps, said), said


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("fault", SAMPLER_FAULTS, ids=lambda fault: fault.name)
def test_faults_of_the_sampler(fault: Fault, built: Built) -> None:
    case = make_sampler_case(6, bf16=True, n=2)
    player = CudaPlayer(built, Memory(1 << 22), but_for_completion(built.bfloat16, fault.plant))
    drawn: list[torch.Tensor] = []
    judge(fault, caught(lambda: drawn.append(draw(player, case))))
    if drawn:
        assert not (drawn[0] - draw_on_host(player, case)).abs().max() < ROUNDING


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
        judge(fault, caught(lambda: got.append(case.run("triton", dtype))))
    if got:
        with pytest.raises(AssertionError):
            assert_as_good(got[0], eager, exact, EPS[dtype])
