"""Block sizes: pure functions of shape, dtype and compute capability.

The sizes are not tuned on a GPU: they keep accumulators in registers and the stages of loads in
shared memory. The ahead-of-time tests verify that.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .geometry import cdiv

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
    share = max(16, cdiv(n, cdiv(n, widest)))
    first = 1 << (share.bit_length() - 1)
    if share == first:
        return first, 0
    second = max(16, 1 << (share - first - 1).bit_length())
    return (first, second) if second < first else (2 * first, 0)


def matmul_tiling(rows: int, columns: int, numbers: Format, capability: int) -> MatmulTiling:
    """The tiling of a matmul with a result of rows x columns. capability: 80, 86, 90, ..."""
    if numbers == "ieee":
        return MatmulTiling(32, *columns_of(columns, 32), 16, 4, 2)
    n1, n2 = columns_of(columns, 160)
    wide = n1 + n2 > 96
    if wide and n2:
        n2 = max(n2, 32)  # 16 bytes of a step of 64 for each thread of 8 warps

    # Accumulators of 256 rows are 160 registers. Before Hopper operands take registers as well, and
    # 128 rows of 80 columns spill in a kernel of several matmuls.
    if capability >= 90:
        heights = [256, 128] if wide and numbers == "half" else [128]
    else:
        heights = [128] if wide else []
    # The largest that leaves at most a quarter of the processors without a program.
    across, least = cdiv(columns, n1 + n2), 0.75 * PROCESSORS
    height = next((height for height in heights if cdiv(rows, height) * across >= least), 64)
    block_k = 64 if numbers == "half" else 32  # 128 bytes of a row
    return MatmulTiling(height, n1, n2, block_k, 8 if wide and height > 64 else 4, 3)


def gradient_tiling(k: int, columns: int, numbers: Format, capability: int) -> MatmulTiling:
    """The tiling of a weight gradient (k x columns), summed over rows; block_p and num_stages do
    not depend on k and columns. capability: 80, 86, ..."""
    if numbers == "ieee":
        return MatmulTiling(16, *columns_of(columns, 32), 32, 4, 2)
    if numbers == "tf32":
        # Two warps: Hopper's own instruction supports TF32 only in the other memory order.
        return MatmulTiling(32, *columns_of(columns, 64), 64, 2, 3)
    n1, n2 = columns_of(columns, 160)
    if n1 + n2 > 96:
        return MatmulTiling(64, n1, n2, 256 if capability >= 90 else 128, 8, 3)
    block_k = 64 if cdiv(k, 64) * 64 < 0.95 * cdiv(k, 128) * 128 else 128
    return MatmulTiling(64, n1, n2, block_k, 4, 3)
