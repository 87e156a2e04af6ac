"""Predicts the time of a training step's gated resnets on an H100 from the tilings of the kernels.

    python tools/predict_training_step.py

Counts what each launch multiplies, pads, and moves through the second-level cache and memory, and
how well its programs fill the multiprocessors. The rates are assumptions; no card has run it.
docs/kernels.md has the table.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dsmooth.kernels.geometry import Rows, Taps
from dsmooth.kernels.tilings import (
    PROCESSORS,
    GradientPlan,
    MatmulTiling,
    block_gradient_plans,
    gradient_part,
    matmul_tiling,
)

CLOCK = 1.755e9  # Hz
FLOP_PER_CLOCK = 4096  # of one multiprocessor's tensor cores, bfloat16
L2_BYTES_PER_CLOCK = 28  # that one multiprocessor gets when all of them read
L1_BYTES = 32 * 1024  # of one program's left operand that stay in the first-level cache
MEMORY = 2.6e12  # bytes/s
LAUNCH = 3e-6  # s, from the start of a kernel to that of the next when they do nothing
INSTRUCTIONS = {8: 180, 4: 270}  # of a warp in a step, the most found in machine code, by warps
SIZES = ((40, 28, 80), (160, 32, 64))  # filters, side of the image, batch


@dataclass(frozen=True)
class Matmul:
    """Multiplications and additions that count, and all, and how they are divided."""

    useful: float
    padded: float
    programs: int
    steps: int
    tiling: MatmulTiling
    contracted: int  # rows or channels that a step contracts
    reread: float = 1  # the part of the left operand that does not lie in L1 yet

    @property
    def step_bytes(self) -> float:
        """Of both operands, bfloat16, that come from the second-level cache in a step."""
        tile = self.tiling
        return 2 * (tile.block_p * tile.block_k * self.reread + self.contracted * tile.block_n)

    @property
    def clocks(self) -> float:
        """Of a program: the longest of products, instructions and second-level cache."""
        tile = self.tiling
        return self.steps * max(
            2 * tile.block_p * tile.block_n * tile.block_k / FLOP_PER_CLOCK,
            INSTRUCTIONS[tile.num_warps] * tile.num_warps / 4,
            self.step_bytes / L2_BYTES_PER_CLOCK,
        )


@dataclass(frozen=True)
class Launch:
    """What it moves through memory, and the matmuls whose programs share it."""

    name: str
    memory_bytes: float
    matmuls: tuple[Matmul, ...] = ()

    @property
    def waves(self) -> float:
        """How many programs a processor computes, on average."""
        return sum(part.programs for part in self.matmuls) / PROCESSORS

    @property
    def filled(self) -> float:
        """The part of the processors' time that the waves take."""
        return self.waves / math.ceil(self.waves)

    @property
    def useful(self) -> float:
        return sum(part.useful for part in self.matmuls)

    @property
    def seconds(self) -> float:
        """The longer of the programs' clocks and memory, and a launch."""
        busy = 0.0
        if self.matmuls:
            total = sum(part.programs * part.clocks for part in self.matmuls) / PROCESSORS
            busy = max(total / self.filled, *(part.clocks for part in self.matmuls)) / CLOCK
        return max(busy, self.memory_bytes / MEMORY) + LAUNCH


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
    rows: Rows, taps: int, columns: int, channels: int, planes: int = 0, tiled_for: int = 0
) -> Matmul:
    """Of all pixels by so many taps, and planes, of channels, with the tiling for that or, of as
    many contracted numbers as are given, for another beside it."""
    k = (taps + planes) * channels
    pixels = rows.pixels
    tile = matmul_tiling(pixels, columns, tiled_for or k, torch.bfloat16, False, 90)
    steps = math.ceil(k / tile.block_k)
    wide = math.ceil(columns / tile.block_n)
    programs = math.ceil(pixels / tile.block_p) * wide
    useful = 2 * pixels * columns * k
    padded = 2 * programs * tile.block_p * tile.block_n * steps * tile.block_k
    # The rows of all taps overlap, and are in L1 if all of some channels follow each other, or if
    # it holds all channels.
    read = (tile.block_p + rows.margin) / tile.block_p
    if channels % tile.block_k == 0 or 2 * tile.block_p * read * channels <= L1_BYTES:
        reread = (min(read, taps) + planes) / (taps + planes)
    else:
        reread = 1.0
    return Matmul(useful, padded, programs, steps, tile, tile.block_k, reread)


def weight_gradient(
    rows: Rows, plan: GradientPlan, taps: int, planes: int, c: int, d: int
) -> Matmul:
    """Of so many taps, and planes, of c channels by d columns."""
    tile, k = plan.tiling, (taps + planes) * c
    padded = 2 * rows.total * plan.tiles * tile.block_k * tile.block_n
    useful = 2 * rows.batch * rows.height * rows.width * k * d
    programs = plan.tiles * plan.splits
    reread = other_rows(tile.block_k, taps, planes, c)
    return Matmul(useful, padded, programs, plan.steps, tile, tile.block_p, reread)


def other_rows(block_k: int, taps: int, planes: int, channels: int) -> float:
    """The part of a tile's columns in a weight gradient that are other channels, on average: the
    rows of several taps overlap. 1 where the channels are in one part."""
    size = gradient_part(channels)
    if size == channels:
        return 1.0
    parts = channels // size
    columns = [part for part in range(parts) for _ in range(taps)]
    columns += range(parts, parts * (1 + planes))
    step = block_k // size
    tiles = (columns[first : first + step] for first in range(0, len(columns), step))
    return sum(len(set(tile)) for tile in tiles) / len(columns)


def parameters(filters: int, taps: Taps, skips: int) -> int:
    """Weights of a gated resnet."""
    return 2 * filters**2 * (3 * taps.kh * taps.kw + skips)


def block(
    filters: int, batch: int, size: int, taps: Taps, skips: int, keep: bool
) -> Iterator[Launch]:
    """The launches of one gated resnet, forward and backward, with dropout.

    keep: A and G.
    """
    f, two = filters, 2 * filters
    rows = Rows.of(torch.empty(batch, f, size, size, device="meta"), taps)
    pixels, t = batch * size * size, taps.kh * taps.kw
    planes = 1 + skips
    yield Launch("pack", parameters(f, taps, skips) * 8)
    yield Launch("expand", pixels * f * (planes * 6 + 1))
    hidden = (matmul(rows, t, f, two, skips),)
    yield Launch("hidden", pixels * f * (4 * planes + 7), hidden)
    gate = (matmul(rows, t, two, two),)
    yield Launch("gate", pixels * f * (8 + 4 * keep), gate)
    yield Launch("expand", pixels * f * ((planes + 1) * 6 + 1 + 10 * keep))
    if not keep:
        yield Launch("gate again", pixels * f * 10, gate)
    yield Launch("data gradients", pixels * f * 9, gate)
    inputs = [matmul(rows, t, two, f)] + [matmul(rows, 1, two, f, tiled_for=t * f)] * skips
    ks = ((t + skips) * two, t * two)
    plans = block_gradient_plans(rows.total, ks, f, torch.bfloat16, False, 90)
    parts = sum(p.splits * k * n * 12 for p, k, n in zip(plans, ks, (f, two), strict=True))
    yield Launch(
        "weight gradients",
        pixels * f * (4 * planes + 2 + 8) + parts,
        (
            weight_gradient(rows, plans[0], t, skips, two, f),
            weight_gradient(rows, plans[1], t, 0, two, two),
        ),
    )
    written = pixels * f * (8 + 6 * skips) + parameters(filters, taps, skips) * 8
    yield Launch("data gradients", written, tuple(inputs))


def launches(
    filters: int, side: int, batch: int, resnets: int = 5, keep: bool = False
) -> Iterator[Launch]:
    """All of a step's gated resnets."""
    for size, taps, skips in blocks(resnets, side):
        yield from block(filters, batch, size, taps, skips, keep)


def useful_share(found: list[Launch]) -> float:
    """Products that count, of all with padding."""
    padded = sum(part.padded for launch in found for part in launch.matmuls)
    return sum(launch.useful for launch in found) / padded


def filled_share(found: list[Launch]) -> float:
    """The part of the processors' time that programs fill, weighted by useful products."""
    filled = sum(launch.useful * launch.filled for launch in found if launch.matmuls)
    return filled / sum(launch.useful for launch in found)


def main() -> None:
    for (filters, side, batch), keep in itertools.product(SIZES, (False, True)):
        found = list(launches(filters, side, batch, keep=keep))
        times: dict[str, float] = defaultdict(float)
        for launch in found:
            times[launch.name] += launch.seconds
        useful = sum(launch.useful for launch in found)
        parts = [part for launch in found for part in launch.matmuls]
        through = sum(part.programs * part.steps * part.step_bytes for part in parts)
        total = sum(times.values())
        title = f"{filters} filters, {side}x{side}, batch {batch}{', gates kept' * keep}"
        print(f"{title}: {len(found)} launches")
        print("  " + ", ".join(f"{name} {1e3 * s:.1f}" for name, s in times.items()), "ms")
        again = sum(launch.useful for launch in found if launch.name == "gate again")
        peak = FLOP_PER_CLOCK * PROCESSORS * CLOCK
        print(f"  {1e3 * total:.1f} ms, {(useful - again) / total / peak:.0%} of peak,")
        print(
            f"  {useful / 1e12:.2f} TFLOP, {useful_share(found):.2f} of all with padding,", end=" "
        )
        print(f"waves {filled_share(found):.2f} full,", end=" ")
        print(f"{through / 1e9:.0f} GB through the second-level cache")


if __name__ == "__main__":
    main()
