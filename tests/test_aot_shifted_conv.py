"""The shifted convolutions' Triton kernels compile to what they are meant to be, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from tests.helpers.aot_launches import check, distinct, is_matmul, shifted_launches
from tests.helpers.triton_tools import compile_launch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROWS = [(BF16, 160, False), (FP16, 20, False), (FP32, 160, True), (FP32, 160, False)]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_kernel_in_every_config(row: tuple[torch.dtype, int, bool], arch: int) -> None:
    kernel = (2, 3) if row[0] == BF16 else (2, 2)
    for launch in distinct(shifted_launches(arch, *row, kernel=kernel)):
        if is_matmul(launch):
            compiled = compile_launch(launch, arch)
            check(launch, compiled, arch, tensor_cores=row[0] != FP32 or row[2])
