"""The gated block's Triton kernels compile to what they are meant to be, without a GPU."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from dsmooth.kernels.tilings import AMPERE, HOPPER
from tests.aot_launches import (
    KERNELS,
    check,
    distinct,
    gated_launches,
    is_matmul,
    shifted_launches,
    tiling_of,
)
from tests.triton_tools import Launch, compile_launch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Row = tuple[torch.dtype, int, bool]  # dtype, filters, TF32
ROWS: list[Row] = [(FP16, 20, False), (FP32, 160, True), (FP32, 160, False)]
each_arch = pytest.mark.parametrize("arch", [80, 90])


def compile_and_check(launch: Launch, arch: int, tensor_cores: bool) -> None:
    check(launch, compile_launch(launch, arch), arch, tensor_cores)


@pytest.mark.slow
@each_arch
def test_every_kernel_in_bfloat16(arch: int) -> None:
    """As CIFAR-10's network calls them: 160 filters, 2x3 taps, two skips."""
    launches = gated_launches(arch, BF16, 160, False)
    for launch in distinct(launches, "KH", "GRAD", "ADD", "DROPOUT"):
        compile_and_check(launch, arch, tensor_cores=True)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
@each_arch
def test_every_kernel_in_every_other_config(arch: int, row: Row) -> None:
    """With 2x2 taps; of kernels with options, the one launched last."""
    launches = gated_launches(arch, *row, kernel=(2, 2))
    matmuls = [launch for launch in launches if launch.arguments.get("KH") == 2]
    for launch in distinct(matmuls):
        compile_and_check(launch, arch, tensor_cores=row[0] == FP16 or row[2])


@pytest.mark.parametrize(("arch", "table"), [(80, AMPERE), (90, HOPPER)])
def test_no_config_is_left_out(arch: int, table: dict[object, object]) -> None:
    """The rows above, with those of other width that share their config, are the table."""
    launches = [
        launch
        for row in [(BF16, 160, False), *ROWS, (FP32, 20, True), (FP32, 20, False)]
        for make in (gated_launches, shifted_launches)
        for launch in make(arch, *row)
        if is_matmul(launch)
    ]
    assert {tiling_of(launch) for launch in launches} == set(table.values())
    for numbers in ("tf32", "ieee"):
        for work in ("single", "paired", "weights"):
            assert table[work, numbers, True] == table[work, numbers, False]


@pytest.mark.slow
def test_every_kernel_builds_for_blackwell() -> None:
    launches = gated_launches(100, BF16, 160, False) + shifted_launches(100, BF16, 160, False)
    assert {launch.kernel.__name__ for launch in launches} == set().union(*KERNELS.values())
    for launch in distinct(launches):
        assert ".target sm_100" in compile_launch(launch, 100).ptx


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tuning would begin")
def test_the_tuner_says_that_it_needs_a_gpu() -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "tune_gated_resnet.py"
    with pytest.raises(SystemExit, match="no CUDA device"):
        runpy.run_path(str(script))["main"]([])
