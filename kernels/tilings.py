"""Block sizes: pure functions of shape, dtype and compute capability.

Not tuned on a card: the sizes keep accumulators in registers and the stages of loads in shared
memory. The ahead-of-time tests verify that. `benchmarks/tune_gated_resnet.py` proposes others where
there is a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

Format = Literal["half", "tf32", "ieee"]
BLOCKS_K = (128, 64, 32, 16)
# Multiprocessors that work is divided among. A constant, so that the order of a sum depends on the
# shape alone, not on the card: those of an H100; an A100 has 108.
PROCESSORS = 132


class MatmulTiling(NamedTuple):
    """One step of a matmul, and the launch of its kernel.

    A program has block_p rows by n1 + n2 columns and takes block_k of the contracted numbers a
    step. In a weight gradient block_p rows are contracted and the output has block_k rows.
    """

    block_p: int
    n1: int
    n2: int
    block_k: int
    num_warps: int
    num_stages: int

    @property
    def block_n(self) -> int:
        return self.n1 + self.n2

    def kernel_options(self) -> dict[str, int]:
        """As keyword arguments of the launch of a convolution."""
        return {
            "BLOCK_P": self.block_p,
            "N1": self.n1,
            "N2": self.n2,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }

    def of_tile(self) -> tuple[int, int, int, int]:
        """All but the launch's own: block_p, n1, n2, block_k."""
        return self[:4]

    def of_gradient(self, name: str) -> dict[str, int]:
        """The blocks of one of the two weight gradients that share a launch."""
        return {
            f"{name}_P": self.block_p,
            f"{name}_N1": self.n1,
            f"{name}_N2": self.n2,
            f"{name}_M": self.block_k,
        }


def launched_together(tilings: Sequence[MatmulTiling]) -> list[list[int]]:
    """The places of those that one launch can have, whose warps and stages are the same."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, tiling in enumerate(tilings):
        groups.setdefault((tiling.num_warps, tiling.num_stages), []).append(place)
    return list(groups.values())


def format_of(dtype: torch.dtype, tf32: bool) -> Format:
    """How numbers are multiplied. tf32: whether float32 may round to TF32."""
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "tf32" if dtype == torch.float32 and tf32 else "ieee"


def columns_of(n: int, widest: int, narrowest: int = 16) -> tuple[int, int]:
    """Two powers of two, the second possibly 0, for programs that share n columns evenly.

    A program has at most `widest` columns and at least 16, its second part at least `narrowest`.
    160 is 128 + 32, 40 is 32 + 16 or 32 + 8, 320 is 256 + 64.
    """
    programs = -(-n // widest)
    share = max(16, -(-n // programs))
    first = 1 << (share.bit_length() - 1)
    if share == first:
        return first, 0
    second = max(narrowest, 1 << (share - first - 1).bit_length())
    return (first, second) if second < first else (2 * first, 0)


def block_k_of(runs: tuple[tuple[int, int], ...], smallest: int, largest: int) -> int:
    """The largest step that wastes at most a tenth of it, or the one that wastes least.

    runs: how many there are, and how long each one is, of the contracted index.
    """
    useful = {}
    for block in BLOCKS_K:
        if smallest <= block <= largest:
            padded = sum(count * (-(-length // block) * block) for count, length in runs)
            useful[block] = sum(count * length for count, length in runs) / padded
    good = [block for block, share in useful.items() if share >= 0.9]
    return good[0] if good else max(useful, key=lambda block: useful[block])


def matmul_tiling(
    rows: int, columns: int, runs: tuple[tuple[int, int], ...], dtype: torch.dtype, tf32: bool
) -> MatmulTiling:
    """Of rows x columns sums over `runs` (see `block_k_of`)."""
    numbers = format_of(dtype, tf32)
    if numbers == "ieee":
        return MatmulTiling(32, *columns_of(columns, 32), 16, 4, 2)
    size = 2 if numbers == "half" else 4
    # Wider ones spill in the epilogues that take pairs of columns.
    n1, n2 = columns_of(columns, 160)
    # Small images have few rows: lower blocks then keep more of the processors busy.
    many = rows // 128 * -(-columns // (n1 + n2)) >= PROCESSORS * 3 // 4
    warps = 8 if many and n1 + n2 > 96 else 4

    def tiling(n1: int, n2: int, largest: int) -> MatmulTiling:
        # Each thread then has 16 bytes to load of the smaller block of weights.
        smallest = 16 * 32 * warps // ((n2 or n1) * size)
        block_k = block_k_of(runs, min(smallest, largest), largest)
        return MatmulTiling(128 if many else 64, n1, n2, block_k, warps, 3)

    found = tiling(n1, n2, 128 // size)
    if numbers == "half" and warps == 4:
        # Eight columns want longer steps, for the sake of those 16 bytes.
        narrow = tiling(*columns_of(columns, 160, 8), 128)
        found = min(found, narrow, key=lambda tiling: padded(columns, runs, tiling))
    return found


def padded(columns: int, runs: tuple[tuple[int, int], ...], tiling: MatmulTiling) -> int:
    """Products for a row, with those of padding."""
    steps = sum(count * -(-length // tiling.block_k) for count, length in runs)
    return -(-columns // tiling.block_n) * tiling.block_n * steps * tiling.block_k


def gradient_tiling(
    k: int, columns: int, dtype: torch.dtype, tf32: bool, capability: int
) -> MatmulTiling:
    """Of a weight gradient with k x columns sums over rows. capability: 80, 86, 90, ..."""
    numbers = format_of(dtype, tf32)
    if numbers == "ieee":
        return MatmulTiling(16, *columns_of(columns, 32), 32, 4, 2)
    if numbers == "tf32":
        # Two warps: Hopper's own instruction takes TF32 only in the other memory order.
        return MatmulTiling(32, *columns_of(columns, 64), 64, 2, 3)
    wide = columns_of(columns, 320 if capability >= 90 else 160)
    if k < 128:
        return MatmulTiling(64, *columns_of(columns, 128), 64, 4, 3)
    if sum(wide) > 96:
        return MatmulTiling(64, *wide, 128, 8, 3)
    # Eight columns by 128 rows are 16 bytes for each thread.
    n1, n2 = columns_of(columns, 96, 8)
    block_k = 64 if -(-k // 64) * 64 < 0.95 * (-(-k // 128) * 128) else 128
    return MatmulTiling(128 if n2 == 8 else 64, n1, n2, block_k, 4, 3)


class GradientPlan(NamedTuple):
    """How a weight gradient is divided: tiles of the result, and splits of the rows into parts.

    A split has `steps` blocks of rows, the last one what remains of all `blocks`.
    """

    tiling: MatmulTiling
    tiles: int
    splits: int
    blocks: int
    steps: int


@functools.lru_cache(maxsize=4096)
def gradient_plan(
    rows: int, k: int, columns: int, dtype: torch.dtype, tf32: bool, capability: int, sharing: int
) -> GradientPlan:
    """Tiles times splits, the programs, fill one wave, or their share of it."""
    tiling = gradient_tiling(k, columns, dtype, tf32, capability)
    return split(tiling, rows, k, columns, PROCESSORS // sharing)


def split(tiling: MatmulTiling, rows: int, k: int, columns: int, programs: int) -> GradientPlan:
    """A weight gradient divided among so many programs, or its tiles where they are more."""
    tiles = -(-k // tiling.block_k) * -(-columns // tiling.block_n)
    blocks = rows // tiling.block_p
    steps = -(-blocks // max(1, min(blocks, programs // tiles)))
    return GradientPlan(tiling, tiles, -(-blocks // steps), blocks, steps)


@functools.lru_cache(maxsize=4096)
def block_gradient_plans(
    rows: int, ks: tuple[int, int], filters: int, dtype: torch.dtype, tf32: bool, capability: int
) -> tuple[GradientPlan, GradientPlan]:
    """The weight gradients of a gated resnet's two convolutions, which share one wave.

    ks: their contracted numbers; they have `filters` and twice as many columns. The wave is divided
    so that the programs of both end together: a step costs what it loads.
    """
    shapes = tuple(zip(ks, (filters, 2 * filters), strict=True))
    tilings = [gradient_tiling(k, columns, dtype, tf32, capability) for k, columns in shapes]
    warps = max(tiling.num_warps for tiling in tilings)
    tilings = [tiling._replace(num_warps=warps) for tiling in tilings]

    def seconds(plans: tuple[GradientPlan, GradientPlan]) -> float:
        return max(
            plan.steps * plan.tiling.block_p * (plan.tiling.block_k + plan.tiling.block_n)
            for plan in plans
        )

    def share(first: int) -> tuple[GradientPlan, GradientPlan]:
        parts = zip(tilings, shapes, (first, PROCESSORS - first), strict=True)
        hidden, out = (split(tiling, rows, *shape, part) for tiling, shape, part in parts)
        return hidden, out

    return min(map(share, range(1, PROCESSORS)), key=lambda plans: (wave(plans), seconds(plans)))


def wave(plans: tuple[GradientPlan, GradientPlan]) -> int:
    """How many waves the programs of both are."""
    return -(-sum(plan.tiles * plan.splits for plan in plans) // PROCESSORS)
