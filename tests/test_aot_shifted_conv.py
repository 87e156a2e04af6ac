"""The shifted convolutions' Triton kernels compile to what they are meant to be, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from tests.helpers.aot_launches import check, distinct, is_matmul, shifted_launches
from tests.helpers.triton_tools import compile_launch

ROWS = [(torch.bfloat16, 160, False), (torch.float32, 40, True)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_matmul(row: tuple[torch.dtype, int, bool]) -> None:
    for launch in distinct(shifted_launches(90, *row), "SHAPES"):
        if is_matmul(launch):
            check(launch, compile_launch(launch, 90), 90)
