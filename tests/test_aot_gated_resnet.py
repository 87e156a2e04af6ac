"""The gated block's Triton kernels compile to what they are meant to be, without a GPU.

`test_interpreter.py` runs this file once more with the oldest Triton that the package takes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from dsmooth.kernels.gated_resnet import Needs
from tests.helpers.aot_launches import KERNELS, Block, check, distinct, is_matmul
from tests.helpers.triton_tools import Launch, compile_launch

full = partial(pytest.param, marks=pytest.mark.full)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Every number of filters with every kernel would be nine times as many; between them these have
# each kernel, dtype and kind of float32, with dropout and without, many images and few.
BLOCKS = [
    Block(160, (2, 3), skips=2, size=(64, 32, 32)),
    Block(24, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)),
]
MORE_BLOCKS = [
    Block(40, (2, 2), skips=1, dropout=False, size=(80, 28, 28), keep=True),
    Block(24, (3, 3), skips=0, dtype=FP16),
    Block(160, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)),
    Block(40, (3, 3), skips=0, size=(2, 8, 8)),
]
PARAMETERS_ALONE = Block(40, needs=Needs(x=False, skips=False))
OF_WEIGHTS = {"pack_kernel", "last_gradients_kernel"}
# Images, filters and skips.
SIZES = [
    ((1, 1, 1), 1, 0), ((3, 5, 7), 5, 2), ((4, 8, 8), 24, 1), ((2, 28, 28), 40, 1),
    ((2, 8, 33), 160, 2),
]  # fmt: skip
IEEE = Block(20, (2, 2), skips=1, dtype=FP32)
ELSEWHERE = [
    (Block(160, (2, 3)), 80), (replace(BLOCKS[1], size=(16, 32, 32)), 80), (IEEE, 80), (IEEE, 90),
]  # fmt: skip


def matmuls(block: Block, arch: int) -> list[Launch]:
    """One launch of each kernel that multiplies matrices, and of each of its forms."""
    launches = [launch for launch in block.launches(arch) if is_matmul(launch)]
    return distinct(launches, "GRAD")


@pytest.mark.parametrize("block", [*BLOCKS, *map(full, MORE_BLOCKS)], ids=str)
def test_every_matmul_on_hopper(block: Block) -> None:
    for launch in matmuls(block, 90):
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
@pytest.mark.parametrize(("block", "arch"), ELSEWHERE, ids=str)
def test_every_matmul_elsewhere(block: Block, arch: int) -> None:
    """On Ampere, and in float32 without tensor cores."""
    for launch in matmuls(block, arch):
        check(launch, compile_launch(launch, arch), arch)


@pytest.mark.parametrize(
    "forms", [(), full(("X", "BACKWARD", "GATES", "ADJOINT", "GRAD", "DROPOUT"))]
)
def test_what_is_no_matmul_neither_spills_nor_fails(forms: tuple[str, ...]) -> None:
    """Each kernel in one of its forms, and in all."""
    launches = Block(40, skips=2).launches(90) + Block(40, skips=2, keep=True).launches(90)
    launches += PARAMETERS_ALONE.launches(90)
    others = [launch for launch in launches if not is_matmul(launch)]
    assert {launch.kernel.__name__ for launch in others} >= {"operands_kernel", *OF_WEIGHTS}
    for launch in distinct(others, *forms):
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(("size", "filters", "skips"), SIZES)
def test_weights_are_packed_and_unpacked_in_registers(size, filters, skips, dtype) -> None:
    """At all numbers of filters that are trained or run on a GPU by the tests."""
    block = Block(filters, skips=skips, size=size, dtype=dtype)
    launches = block.launches(90) + replace(block, needs=PARAMETERS_ALONE.needs).launches(90)
    launches = [one for one in distinct(launches, "X") if one.kernel.__name__ in OF_WEIGHTS]
    assert {launch.kernel.__name__ for launch in launches} == OF_WEIGHTS
    for launch in launches:
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
def test_every_kernel_builds_for_blackwell() -> None:
    launches = Block(40).launches(100)
    assert {launch.kernel.__name__ for launch in launches} == set().union(*KERNELS.values())
    for launch in distinct(launches):
        assert ".target sm_100" in compile_launch(launch, 100).ptx
