"""Predicts the time of the cached sampler on a GPU from the network's program and counted cycles.

    python tools/predict_cuda_sampler.py

Counts what one thread block does in a sweep over its slice, as pixel_stages.cuh and row_tiles.cuh
do. The cycles are those of sampler_cycles.json: sums of the stalls that the compiler encoded in the
machine code of the bfloat16 kernel for sm_90, along the longest way through each part
(tests/helpers/sampler_cycles.py; a test counts them again). They are what one warp needs if it
never waits for memory or for another warp. The rates of memory are assumptions about an H100;
docs/sampler.md says where from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dsmooth
from dsmooth.nn import PixelCNNpp
from dsmooth.sampling.builder import build_program
from dsmooth.sampling.program import NONE, Op, Pass, Program

PROCESSORS, WARPS = 132, 8
CLOCK = 1.755e9  # Hz
L2_BANDWIDTH = 5.5e12 / PROCESSORS  # bytes/s that one processor gets when all read
L2_CYCLES = 300  # until a load comes back: once a stage, and for each further window of a unit
ROWS, COLUMNS, GRANULE, STEP = 8, 16, 16, 64  # of a fragment; bytes; bytes of k in a row
WINDOW = 8  # steps
# Row parts: heights of a tile, units across, and rows that are finished at once.
LOW, TALL, WIDE, GROUP = 16, 48, 2, 16
CYCLES: dict[str, dict[str, int]] = json.loads(
    (Path(__file__).parent / "sampler_cycles.json").read_text()
)["cycles"]


@dataclass
class Work:
    """Of one block in one sweep."""

    stages: int = 0  # that wait for one another
    tiles: int = 0  # of row parts
    weight_bytes: float = 0
    pixel_seconds: float = 0
    row_seconds: float = 0

    @property
    def seconds(self) -> float:
        return self.pixel_seconds + self.row_seconds


def ceil(n: int, d: int) -> int:
    return -(-n // d)


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
            granules = sum(t.weight.shape[1] * ceil(2 * t.weight.shape[2], GRANULE) for t in terms)
            steps = ceil(granules * GRANULE, STEP)
            units = ceil(len(op.bias), COLUMNS)
            for times, columns in runs(program, op, pixel, size):
                if pixel:
                    add_stages(work, times, images, units, steps)
                else:
                    waits = horizontal and any(not t.row_part for t in op.terms)
                    add_rows(work, times, images * columns, units, steps, waits)
                if not pixel and not horizontal:
                    work.stages += times
    return work


def add_stages(work: Work, times: int, images: int, units: int, steps: int) -> None:
    """An operation at so many pixels."""
    slice_ = str(ceil(images, ROWS) * ROWS)
    rounds = ceil(units, WARPS)
    more = ceil(steps, WINDOW) - 1
    unit = CYCLES["stage"][slice_] + more * (CYCLES["window"][slice_] + L2_CYCLES)
    cycles = rounds * unit + L2_CYCLES
    weights = units * steps * COLUMNS * STEP
    work.stages += times
    work.weight_bytes += times * weights
    work.pixel_seconds += times * max(cycles / CLOCK, weights / L2_BANDWIDTH)


def add_rows(work: Work, times: int, rows: int, units: int, steps: int, waits: bool) -> None:
    """A product of so many rows, drawn so many times; its tiles are shared by the warps.

    waits: its sums are stored as they are, for the pixel part.
    """
    across = ceil(units, WIDE)
    high = TALL if ceil(rows, TALL) * across >= WARPS else LOW
    tiles = ceil(rows, high) * across
    step, finish, rest = (CYCLES[f"row_{part}"][str(high)] for part in ("step", "finish", "rest"))
    finishes = 0 if waits else WIDE * high // GROUP
    tile = rest + steps * step + finishes * finish + 2 * L2_CYCLES
    copied = tiles * steps * STEP * (WIDE * COLUMNS + high)
    work.tiles += times * tiles
    work.weight_bytes += times * tiles * steps * STEP * WIDE * COLUMNS
    work.row_seconds += times * max(ceil(tiles, WARPS) * tile / CLOCK, copied / L2_BANDWIDTH)


def main() -> None:
    """Print a row per network and slice."""
    print("network, images a block: stages, row tiles, weights GB, pixel s, row s, s, img/s")
    for name, channels, n_filters, size in (
        ("MNIST F40 R5", 1, 40, 28),
        ("CIFAR-10 F160 R5", 3, 160, 32),
    ):
        config = dsmooth.ModelConfig(
            image_channels=channels, n_filters=n_filters, n_resnet=5, n_mix=10
        )
        program = build_program(PixelCNNpp(config), bf16=True)
        for images in (1, 8, 16):
            w = count(program, images, size)
            print(
                f"{name}, {images}: {w.stages:,}, {w.tiles:,}, {w.weight_bytes / 1e9:.2f}, "
                f"{w.pixel_seconds:.4f}, {w.row_seconds:.4f}, {w.seconds:.4f}, "
                f"{images * PROCESSORS / w.seconds:.0f}"
            )


if __name__ == "__main__":
    main()
