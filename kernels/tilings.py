"""Block sizes: pure functions of shape, dtype and compute capability.

The sizes are not tuned on a GPU: they keep accumulators in registers and the stages of loads in
shared memory. The ahead-of-time tests verify that.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Format = Literal["half", "tf32", "ieee"]
# Multiprocessors among which work is divided: those of an H100 (an A100 has 108). It is a constant
# so that the order of a sum depends only on the shape, not on the GPU.
PROCESSORS = 132


class MatmulTiling(NamedTuple):
    """A program computes block_p rows by n1 + n2 columns and contracts block_k numbers per step.

    In a weight gradient block_p rows are contracted and the output has block_k rows.
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


def columns_of(n: int, widest: int) -> tuple[int, int]:
    """Two powers of two, the second possibly 0, for programs that share n columns evenly: 160 is
    128 + 32, 40 is 32 + 16. A program has 16 to `widest` columns; its second part has at least
    16."""
    programs = -(-n // widest)
    share = max(16, -(-n // programs))
    first = 1 << (share.bit_length() - 1)
    if share == first:
        return first, 0
    second = max(16, 1 << (share - first - 1).bit_length())
    return (first, second) if second < first else (2 * first, 0)


def matmul_tiling(
    rows: int, columns: int, k: int, numbers: Format, capability: int, *, several: bool = False
) -> MatmulTiling:
    """The tiling of a (rows x k) by (k x columns) matmul. capability: 80, 86, 90, ...

    several: whether its kernel has several such matmuls, whose addresses take registers.
    """
    if numbers == "ieee":
        return MatmulTiling(32, *columns_of(columns, 32), 16, 4, 2)
    size = 2 if numbers == "half" else 4
    n1, n2 = columns_of(columns, 160)
    wide = n1 + n2 > 96
    if wide and n2:
        n2 = max(n2, 32)  # 16 bytes of a step of 64 for each thread of 8 warps

    def clocks(height: int) -> float:
        """Approximate H100 clocks per contracted number: for each wave of programs the larger of
        tensor cores at 4096 FLOP and L2 cache at 28 bytes per clock, with 2 bytes per number."""
        programs = -(-rows // height) * -(-columns // (n1 + n2))
        read = height / 3 + n1 + n2  # a row is read once for about three taps
        return -(-programs // PROCESSORS) * max(height * (n1 + n2) / 2048, read / 14)

    # Accumulators of 256 rows are 160 registers; before Hopper operands take registers as well.
    heights = [64, 128, 256] if wide and numbers == "half" and capability >= 90 else [64, 128]
    if several and not wide and capability < 90:
        heights = [64]  # 128 rows of 80 columns spill
    height = min(heights, key=clocks)
    warps = 8 if wide and height > 64 else 4

    # Each thread has 16 bytes to load of the smaller block of weights.
    largest = 128 // size
    smallest = min(16 * 32 * warps // ((n2 or n1) * size), largest)
    # The largest step that wastes at most a tenth, else the step that wastes least.
    blocks = [block for block in (64, 32, 16) if smallest <= block <= largest]
    useful = {block: k / (-(-k // block) * block) for block in blocks}
    good = [block for block in blocks if useful[block] >= 0.9]
    block_k = good[0] if good else max(blocks, key=lambda block: useful[block])
    return MatmulTiling(height, n1, n2, block_k, warps, 3)


def gradient_tiling(k: int, columns: int, numbers: Format, capability: int) -> MatmulTiling:
    """The tiling of a weight gradient (k x columns), summed over rows; block_p and num_stages do
    not depend on k and columns. capability: 80, 86, ..."""
    if numbers == "ieee":
        return MatmulTiling(16, *columns_of(columns, 32), 32, 4, 2)
    if numbers == "tf32":
        # Two warps: Hopper's own instruction supports TF32 only in the other memory order.
        return MatmulTiling(32, *columns_of(columns, 64), 64, 2, 3)
    if k < 128:
        return MatmulTiling(64, *columns_of(columns, 128), 64, 4, 3)
    wide = columns_of(columns, 160)
    if sum(wide) > 96:
        return MatmulTiling(64, *wide, 256 if capability >= 90 else 128, 8, 3)
    block_k = 64 if -(-k // 64) * 64 < 0.95 * (-(-k // 128) * 128) else 128
    return MatmulTiling(64, *columns_of(columns, 96), block_k, 4, 3)
