"""Kernels whose machine code is known beforehand, as triton_tools must see them."""

from __future__ import annotations

import sys

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
import triton.language as tl  # noqa: E402

from tests.helpers.sass import matrix_loops, register_operand, tensor_clocks  # noqa: E402
from tests.helpers.triton_tools import compile_ahead, compile_launch, record_launches  # noqa: E402

pytestmark = pytest.mark.full
LOAD_128 = "ld.global.v4.b32"


@triton.jit
def matmul_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    col = tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + row * N + col), tl.load(b_ptr + row * N + col))
    tl.store(out_ptr + row * N + col, product)


@triton.jit
def computed_operand_kernel(a_ptr, b_ptr, out_ptr, steps, N: tl.constexpr):
    row = tl.arange(0, N)[:, None]
    col = tl.arange(0, N)[None, :]
    total = tl.zeros((N, N), dtype=tl.float32)
    for _ in range(steps):
        a = tl.exp(tl.load(a_ptr + row * N + col).to(tl.float32))
        total = tl.dot(a.to(tl.bfloat16), tl.load(b_ptr + row * N + col), total)
        a_ptr += N * N
        b_ptr += N * N
    tl.store(out_ptr + row * N + col, total)


@triton.jit
def running_sum_kernel(in_ptr, out_ptr, count, stride, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(in_ptr + offs * stride, mask=offs < count, other=0.0)
    tl.store(out_ptr + offs, tl.associative_scan(value, 0, _add), mask=offs < count)


@triton.jit
def _add(a, b):
    return a + b


def test_an_operand_in_registers_is_seen() -> None:
    """A value computed between load and product is multiplied from registers."""
    signature = {"a_ptr": "*bf16:16", "b_ptr": "*bf16:16", "out_ptr": "*fp32:16", "steps": "i32"}
    computed = compile_ahead(computed_operand_kernel, signature, {"N": 64}, 90, num_warps=4)
    (loop,) = matrix_loops(computed.code)
    assert any(register_operand(line) for line in loop)
    assert sum(tensor_clocks([line]) for line in loop) == 2 * 64**3 / 4096
    del signature["steps"]
    loaded = compile_ahead(matmul_kernel, signature, {"N": 64}, 90, num_warps=4)
    assert loaded.count("HGMMA") > 0
    assert not any(register_operand(line) for line in loaded.code)


def test_spills_are_seen() -> None:
    """One warp scans 8192 numbers: 256 a thread, which has 255 registers."""
    signature = {"in_ptr": "*fp32:16", "out_ptr": "*fp32:16", "count": "i32", "stride": "i32"}
    narrow = compile_ahead(running_sum_kernel, signature, {"BLOCK": 128}, 90, num_warps=1)
    wide = compile_ahead(running_sum_kernel, signature, {"BLOCK": 8192}, 90, num_warps=1)
    assert narrow.local == narrow.stack == 0
    assert wide.local > 0
    assert wide.stack > 0


def test_a_recorded_launch_is_specialised_as_triton_does() -> None:
    module = sys.modules[__name__]
    source, target = torch.zeros(4096), torch.zeros(4096)
    with record_launches(module, "running_sum_kernel") as launches:
        for stride, count in ((1, 128), (3, 128), (1, 127)):
            running_sum_kernel[(1,)](
                source, target, count, stride, BLOCK=128, num_warps=1, enable_fp_fusion=True
            )
    assert [launch.options["num_warps"] for launch in launches] == [1, 1, 1]
    assert type(running_sum_kernel) is triton.JITFunction
    vector, strided, odd = (compile_launch(launch, 80) for launch in launches)
    # Adjacent, aligned and a multiple of 16 in number: a load of 128 bits, only then.
    assert LOAD_128 in vector.ptx
    assert LOAD_128 not in strided.ptx
    assert LOAD_128 not in odd.ptx
