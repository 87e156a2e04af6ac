"""Predicts the time of the cached sampler on a GPU from the network's program and a few rates.

    python tools/predict_cuda_sampler.py

Counts what one thread block does in a sweep over its slice, tile by tile as worker_cuda.cuh does,
and sums their times. The rates are assumptions about an H100; docs/sampler.md says where from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import dsmooth
from dsmooth.nn import PixelCNNpp
from dsmooth.sampling.builder import build_program
from dsmooth.sampling.program import NONE, Op, Pass, Program

PROCESSORS = 132
CLOCK = 1.755e9  # Hz
L2_BANDWIDTH = 5.5e12 / PROCESSORS  # bytes/s that one processor gets when all read
TILE_SECONDS = 1.0e-6  # of a tile but for bytes and products: L2 latency, barriers, epilogue
SHARED_BYTES_PER_CYCLE = 128
FRAGMENT, STEP_BYTES = 16, 2 * 16 * 16 * 2  # a product of fragments reads two from shared memory
ROW_COLUMNS, PIXEL_COLUMNS, ROW_ROWS, PIXEL_ROWS, FRAGMENTS = 128, 512, 128, 32, 64


@dataclass
class Work:
    """Of one block in one sweep."""

    tiles: int = 0
    stages: int = 0  # that wait for one another
    weight_bytes: float = 0
    activation_bytes: float = 0
    steps: int = 0  # products of 16 x 16 x 16
    seconds: float = 0


def padded(n: int) -> int:
    """Up to a whole fragment."""
    return -(-n // FRAGMENT) * FRAGMENT


def panels(op: Op, columns: int) -> list[int]:
    """Widths in fragments, as device_plan.cpp cuts them."""
    sides = 2 if op.gate else 1
    fragments = padded(len(op.bias) // sides) // FRAGMENT
    count = -(-fragments // (columns // FRAGMENT // sides))
    return [(fragments // count + (i < fragments % count)) * sides for i in range(count)]


def runs(program: Program, op: Op, pixel: bool, size: int) -> Iterator[tuple[int, int]]:
    """(how often, columns at once) of a part in one image of size x size."""
    rows = (size >> op.level) // (1 if op.row_parity == NONE else 2)
    columns = (size >> op.level) // (1 if op.column_parity == NONE else 2)
    resamples = op.column_parity != NONE or any(
        program.caches[t.cache].level != op.level for t in op.terms
    )
    yield (rows * columns, 1) if pixel or resamples else (rows, columns)


def count(program: Program, images: int, size: int) -> Work:
    """The work of a slice of `images`."""
    work = Work()
    for op in program.ops:
        horizontal = op.stage == Pass.HORIZONTAL
        for pixel in (False, True):
            only = op.stage == Pass.HEAD
            terms = [t for t in op.terms if (not t.row_part if horizontal else only) == pixel]
            if not terms:
                continue
            depth = sum(t.weight.shape[1] * padded(t.weight.shape[2]) for t in terms)
            for times, columns in runs(program, op, pixel, size):
                rows = images * columns
                if pixel or not horizontal:
                    work.stages += times
                for width in panels(op, PIXEL_COLUMNS if pixel else ROW_COLUMNS):
                    most = PIXEL_ROWS if pixel else ROW_ROWS
                    while most // FRAGMENT * width > FRAGMENTS:
                        most //= 2
                    for first in range(0, rows, most):
                        add_tile(work, times, min(most, rows - first), width, depth)
    return work


def add_tile(work: Work, times: int, rows: int, width: int, depth: int) -> None:
    """A tile of `rows` by `width` fragments, drawn so many times."""
    down = 1
    while down * FRAGMENT < rows:
        down *= 2
    steps = down * width * depth // FRAGMENT
    weights, activations = 2 * depth * width * FRAGMENT, 2 * depth * rows
    copied = (weights + activations) / L2_BANDWIDTH
    multiplied = steps * STEP_BYTES / SHARED_BYTES_PER_CYCLE / CLOCK
    work.tiles += times
    work.weight_bytes += times * weights
    work.activation_bytes += times * activations
    work.steps += times * steps
    work.seconds += times * (TILE_SECONDS + max(copied, multiplied))


def main() -> None:
    """Print a row per network and slice."""
    print("network, images a block: stages, tiles, weights GB, activations GB, products, s, img/s")
    for name, channels, n_filters, size, slices in (
        ("MNIST F40 R5", 1, 40, 28, (1, 8, 16, 32)),
        ("CIFAR-10 F160 R5", 3, 160, 32, (1, 16, 32)),
    ):
        config = dsmooth.ModelConfig(
            image_channels=channels, n_filters=n_filters, n_resnet=5, n_mix=10
        )
        program = build_program(PixelCNNpp(config), bf16=True)
        for images in slices:
            w = count(program, images, size)
            print(
                f"{name}, {images}: {w.stages:,}, {w.tiles:,}, {w.weight_bytes / 1e9:.2f}, "
                f"{w.activation_bytes / 1e9:.2f}, {w.steps / 1e6:.0f} M, {w.seconds:.4f}, "
                f"{images * PROCESSORS / w.seconds:.0f} "
                f"[copies {(w.weight_bytes + w.activation_bytes) / L2_BANDWIDTH:.3f} s, products "
                f"{w.steps * STEP_BYTES / SHARED_BYTES_PER_CYCLE / CLOCK:.3f} s]"
            )


if __name__ == "__main__":
    main()
