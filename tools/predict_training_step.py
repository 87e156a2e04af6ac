"""Predicts the time of a training step's gated resnets on an H100 from the tilings of the kernels.

    python tools/predict_training_step.py

Counts what each launch multiplies, pads, and moves through the second-level cache and memory, and
how well its programs fill the multiprocessors. The rates are assumptions; no card has run it.
docs/kernels.md has the table.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dsmooth.kernels.geometry import Rows, Taps
from dsmooth.kernels.tilings import (
    PROCESSORS,
    MatmulTiling,
    gradient_plan,
    matmul_tiling,
)

CLOCK = 1.755e9  # Hz
FLOP_PER_CLOCK = 4096  # of one multiprocessor's tensor cores, bfloat16
L2_BYTES_PER_CLOCK = 28  # that one multiprocessor gets when all of them read
MEMORY = 2.6e12  # bytes/s
LAUNCH = 3e-6  # s, from the start of a kernel to that of the next when they do nothing
INSTRUCTIONS = {8: 145, 4: 170}  # of a warp in a step, the most found in machine code, by warps
SIZES = ((40, 28, 80), (160, 32, 64))  # filters, side of the image, batch


@dataclass(frozen=True)
class Work:
    """One launch: multiplications and additions that count, and all; bytes; how it is divided."""

    name: str
    useful: float = 0
    padded: float = 0
    memory_bytes: float = 0
    programs: int = 0
    steps: int = 0
    tiling: MatmulTiling | None = None
    reread: float = 1  # the part of the left operand that does not lie in L1 yet

    @property
    def waves(self) -> float:
        """How many programs a processor computes, on average."""
        return self.programs / PROCESSORS

    @property
    def seconds(self) -> float:
        """The longest of products, instructions, second-level cache and memory, and a launch."""
        if self.tiling is None:
            return self.memory_bytes / MEMORY + LAUNCH
        tile = self.tiling
        clocks = max(
            2 * tile.block_p * tile.block_n * tile.block_k / FLOP_PER_CLOCK,
            INSTRUCTIONS[tile.num_warps] * tile.num_warps / 4,
            self.step_bytes / L2_BYTES_PER_CLOCK,
        )
        busy = math.ceil(self.waves) * self.steps * clocks / CLOCK
        return max(busy, self.memory_bytes / MEMORY) + LAUNCH

    @property
    def step_bytes(self) -> float:
        """Of both operands, bfloat16, that come from the second-level cache in a step."""
        assert self.tiling is not None
        tile = self.tiling
        contracted = tile.block_p if self.name == "weight gradients" else tile.block_k
        return 2 * (tile.block_p * tile.block_k * self.reread + contracted * tile.block_n)


def blocks(resnets: int, side: int) -> Iterator[tuple[int, Taps, int]]:
    """Side, taps and skips of every gated resnet of a PixelCNN++."""
    down, right = Taps(2, 3, 1, 1), Taps(2, 2, 1, 1)
    for level in range(3):
        for _ in range(resnets):
            yield from ((side >> level, down, 0), (side >> level, right, 1))
    for level in (2, 1, 0):
        for _ in range(resnets + (level < 2)):
            yield from ((side >> level, down, 1), (side >> level, right, 2))


def matmul(
    name: str, rows: Rows, columns: int, runs: tuple[tuple[int, int], ...], memory: float
) -> Work:
    """A launch of a kernel that ends a matmul, memory bytes a pixel."""
    tile = matmul_tiling(rows.total, columns, runs, torch.bfloat16, False)
    steps = sum(count * math.ceil(length / tile.block_k) for count, length in runs)
    wide = math.ceil(columns / tile.block_n)
    pixels = rows.batch * rows.height * rows.width
    useful = 2 * pixels * columns * sum(count * length for count, length in runs)
    padded = 2 * rows.total * wide * tile.block_n * steps * tile.block_k
    programs = rows.total // tile.block_p * wide
    reread, (count, length) = 1.0, runs[0]
    if length % (rows.kw * tile.block_k) == 0:
        # All taps of some channels follow each other, and their rows overlap.
        reread = (tile.block_p + rows.margin) / (tile.block_p * count * rows.kw)
    return Work(name, useful, padded, memory * pixels, programs, steps, tile, min(reread, 1.0))


def weight_gradient(name: str, rows: Rows, k: int, columns: int, memory: float) -> Work:
    plan = gradient_plan(rows.total, k, columns, torch.bfloat16, False, 90)
    tile = plan.tiling
    pixels = rows.batch * rows.height * rows.width
    padded = 2 * rows.total * plan.tiles * tile.block_k * tile.block_n
    moved = memory * pixels + plan.splits * k * columns * 4 * 3
    useful = 2 * pixels * k * columns
    return Work(name, useful, padded, moved, plan.tiles * plan.splits, plan.steps, tile)


def block(filters: int, batch: int, size: int, taps: Taps, skips: int) -> Iterator[Work]:
    """The launches of one gated resnet, forward and backward, with dropout."""
    f, two = filters, 2 * filters
    rows = Rows(batch, size, size, taps.kh, taps.kw)
    pixels, t = batch * size * size, taps.kh * taps.kw
    wide, narrow = (taps.kh, taps.kw * two), (taps.kh, taps.kw * f)
    parameters = two * (t + skips) * f + 2 * two * t * f
    yield Work("pack", memory_bytes=parameters * 8)
    for planes in (1 + skips, 1, 2 + skips):
        yield Work("expand", memory_bytes=planes * pixels * 3 * f * 2)
    yield matmul("hidden", rows, f, (wide, (skips, two)), 2 * (two * (1 + skips) + f))
    yield matmul("gate", rows, two, (wide,), 2 * (two + two))
    yield matmul("gate again", rows, two, (wide,), 2 * (two + f + two))
    yield matmul("data gradients", rows, two, (wide,), 2 * (two + two) + f)
    yield matmul("data gradients", rows, two, (narrow,), 2 * 4 * f)
    for _ in range(skips):
        yield matmul("data gradients", rows, two, ((1, f),), 2 * 3 * f)
    yield weight_gradient("weight gradients", rows, t * two, two, 2 * (two + two))
    k = (t + skips) * two
    yield weight_gradient("weight gradients", rows, k, f, 2 * (two * (1 + skips) + f))
    yield Work("unpack", memory_bytes=parameters * 8)


def launches(filters: int, side: int, batch: int, resnets: int = 5) -> Iterator[Work]:
    """All of a step's gated resnets."""
    for size, taps, skips in blocks(resnets, side):
        yield from block(filters, batch, size, taps, skips)


def useful_share(found: list[Work]) -> float:
    """Products that count, of all with padding."""
    return sum(work.useful for work in found) / sum(work.padded for work in found)


def filled_share(found: list[Work]) -> float:
    """The part of the processors' time that programs fill, weighted by useful products."""
    filled = sum(work.useful * work.waves / math.ceil(work.waves) for work in found if work.useful)
    return filled / sum(work.useful for work in found)


def main() -> None:
    for filters, side, batch in SIZES:
        found = list(launches(filters, side, batch))
        times: dict[str, float] = defaultdict(float)
        for work in found:
            times[work.name] += work.seconds
        multiplied = [work for work in found if work.tiling is not None]
        useful = sum(work.useful for work in multiplied)
        through = sum(w.programs * w.steps * w.step_bytes for w in multiplied)
        total = sum(times.values())
        print(f"{filters} filters, {side}x{side}, batch {batch}: {len(found)} launches")
        print("  " + ", ".join(f"{name} {1e3 * s:.1f}" for name, s in times.items()), "ms")
        again = sum(w.useful for w in multiplied if w.name == "gate again")
        peak = FLOP_PER_CLOCK * PROCESSORS * CLOCK
        print(f"  {1e3 * total:.1f} ms, {(useful - again) / total / peak:.0%} of peak,")
        print(
            f"  {useful / 1e12:.2f} TFLOP, {useful_share(found):.2f} of all with padding,", end=" "
        )
        print(f"waves {filled_share(found):.2f} full,", end=" ")
        print(f"{through / 1e9:.0f} GB through the second-level cache")


if __name__ == "__main__":
    main()
