"""Ceilings of a CUDA device: a copy, a matmul, the L2 cache, both tensor-core instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.measure import Limit, Run, Work, copy, matmul
from benchmarks.networks import CIFAR, MNIST, SMALL, Network

BF16 = torch.bfloat16
NETWORKS = {"mnist": MNIST, "cifar": CIFAR}


@dataclass(frozen=True)
class Card:
    """The device, and whether cases have their smallest size."""

    device: torch.device
    tiny: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def ours(self) -> Any:
        """The fast implementation of ops on the device."""
        return "triton" if self.is_cuda else "native"

    def size(self, name: str, batch: int) -> tuple[Network, int]:
        return (SMALL, 2) if self.tiny else (NETWORKS[name], batch)

    def wait(self) -> None:
        """Return once the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Case:
    """A contender and the work of one call.

    check: fails if the contender is wrong. calls: number of calls that do the whole work, of which
    one is timed.
    """

    run: Run
    work: Work = field(default_factory=Work)
    check: Run = lambda: None
    rounds: int = 10
    warmup: int = 1
    calls: int = 1


def torch_ceiling(make: Callable[[], Limit], card: Card) -> Case:
    """A limit of benchmarks/measure.py on the device."""
    with card.device:
        limit = make()
    return Case(limit, Work(**{limit.unit: limit.amount}))


@triton.jit
def read_kernel(source_ptr, target_ptr, n_blocks, repeats, BLOCK: tl.constexpr):
    """Each program reads the whole source repeatedly, bypassing the L1 cache."""
    offs = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(n_blocks * repeats):
        start = (tl.program_id(0) + i) % n_blocks * BLOCK
        total += tl.load(source_ptr + start + offs, cache_modifier=".cg")
    tl.store(target_ptr + tl.program_id(0) * BLOCK + offs, total)


def multiprocessors(card: Card) -> int:
    return int(torch.cuda.get_device_properties(card.device).multi_processor_count)


def l2_ceiling(everywhere: bool, card: Card) -> Case:
    """Reading 4 MB, which fit in the L2 cache, by one multiprocessor or by all."""
    block, n_blocks, repeats = 16384, 64, 8
    programs = multiprocessors(card) if everywhere else 1
    source = torch.ones(n_blocks * block, device=card.device)
    target = torch.empty(programs * block, device=card.device)

    def run() -> None:
        read_kernel[(programs,)](source, target, n_blocks, repeats, BLOCK=block, num_warps=16)

    run()
    assert (target == n_blocks * repeats).all()
    return Case(run, Work(bytes=programs * repeats * source.nbytes))


@triton.jit
def mma_kernel(sums_ptr, repeats, BLOCK: tl.constexpr):
    """Each warp multiplies 16x16 by 16x8 ones in its registers by mma.sync, and adds."""
    pair = tl.full((BLOCK,), 0x3F803F80, tl.int32)  # of ones in bfloat16
    c0 = tl.zeros((BLOCK,), tl.float32)
    c1, c2, c3 = c0, c0, c0
    for _ in range(repeats):
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{$0, $1, $2, $3}, {$4, $4, $4, $4}, {$4, $4}, {$5, $6, $7, $8};",
            "=f,=f,=f,=f,r,f,f,f,f",
            [pair, c0, c1, c2, c3],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums_ptr + offs, c0 + c1 + c2 + c3)


@triton.jit
def wgmma_kernel(a_ptr, b_ptr, sums_ptr, repeats, M: tl.constexpr, N: tl.constexpr):
    """Each program adds products of the same (M, M) and (M, N) matrices in shared memory."""
    offs_m, offs_n = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(a_ptr + offs_m[:, None] * M + offs_m[None, :])
    b = tl.load(b_ptr + offs_m[:, None] * N + offs_n[None, :])
    sums = tl.zeros((M, N), tl.float32)
    for _ in range(repeats):
        sums = tl.dot(a, b, sums)
    offs = tl.program_id(0) * M * N + offs_m[:, None] * N + offs_n[None, :]
    tl.store(sums_ptr + offs, sums)


def mma_ceiling(card: Card) -> Case:
    """mma.sync in bfloat16, two warps a scheduler as in the sampler."""
    programs, block, repeats = 2 * multiprocessors(card), 1024, 1 << 14
    sums = torch.empty(programs * block, device=card.device)

    def run() -> None:
        mma_kernel[(programs,)](sums, repeats, BLOCK=block, num_warps=4)

    run()
    assert (sums == 4 * 16 * repeats).all()
    return Case(run, Work(flops=2 * 4 * 16 * sums.numel() * repeats))


def wgmma_ceiling(card: Card) -> Case:
    """wgmma in bfloat16, if the device has it."""
    programs, m, n, repeats = multiprocessors(card), 128, 256, 1 << 12
    a, b = (torch.ones(m, k, device=card.device, dtype=BF16) for k in (m, n))
    sums = torch.empty(programs, m, n, device=card.device)

    def run() -> None:
        wgmma_kernel[(programs,)](a, b, sums, repeats, M=m, N=n, num_warps=8)

    run()
    assert (sums == m * repeats).all()
    return Case(run, Work(flops=2 * m * sums.numel() * repeats))


CEILINGS: dict[str, Callable[[Card], Case]] = {
    "ceiling-copy": partial(torch_ceiling, partial(copy, 2**30)),  # larger than the caches
    "ceiling-matmul": partial(torch_ceiling, partial(matmul, BF16, 8192)),
    "ceiling-l2-one": partial(l2_ceiling, False),
    "ceiling-l2-all": partial(l2_ceiling, True),
    "ceiling-mma": mma_ceiling,
    "ceiling-wgmma": wgmma_ceiling,
}
