"""Block sizes: a frozen table, read by a pure function of shape, dtype and compute capability.

Not tuned on a card: the sizes keep accumulators in registers and the stages of loads in shared
memory. The ahead-of-time tests verify that for every row. `benchmarks/tune_gated_resnet.py`
proposes others where there is a GPU.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Work = Literal["single", "paired", "weights"]
Format = Literal["half", "tf32", "ieee"]


class MatmulTiling(NamedTuple):
    """One step of a matmul, and the launch of its kernel.

    block_p pixels, block_n output columns and block_k contracted channels; in a weight gradient
    block_p pixels are contracted and the output has block_k rows and block_n columns.
    """

    block_p: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def kernel_options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {
            "BLOCK_P": self.block_p,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


# Work: "single" writes one column per filter; "paired" two that its epilogue combines (A and G, or
# the gradients of elu(x) and elu(-x)); "weights" is a weight gradient. The last key says whether
# the convolution has more than 32 channels on both sides.
AMPERE: dict[tuple[Work, Format, bool], MatmulTiling] = {
    ("single", "half", False): MatmulTiling(64, 32, 32, 4, 3),
    ("single", "half", True): MatmulTiling(64, 64, 64, 4, 3),
    ("single", "tf32", False): MatmulTiling(64, 64, 32, 4, 3),
    ("single", "tf32", True): MatmulTiling(64, 64, 32, 4, 3),
    ("single", "ieee", False): MatmulTiling(32, 32, 16, 4, 2),
    ("single", "ieee", True): MatmulTiling(32, 32, 16, 4, 2),
    ("paired", "half", False): MatmulTiling(64, 32, 32, 4, 3),
    ("paired", "half", True): MatmulTiling(64, 128, 32, 4, 3),
    ("paired", "tf32", False): MatmulTiling(64, 64, 32, 4, 3),
    ("paired", "tf32", True): MatmulTiling(64, 64, 32, 4, 3),
    ("paired", "ieee", False): MatmulTiling(32, 32, 16, 4, 2),
    ("paired", "ieee", True): MatmulTiling(32, 32, 16, 4, 2),
    ("weights", "half", False): MatmulTiling(64, 32, 32, 4, 3),
    ("weights", "half", True): MatmulTiling(64, 64, 32, 4, 3),
    ("weights", "tf32", False): MatmulTiling(32, 64, 64, 4, 3),
    ("weights", "tf32", True): MatmulTiling(32, 64, 64, 4, 3),
    ("weights", "ieee", False): MatmulTiling(16, 32, 32, 4, 2),
    ("weights", "ieee", True): MatmulTiling(16, 32, 32, 4, 2),
}
HOPPER: dict[tuple[Work, Format, bool], MatmulTiling] = AMPERE | {
    ("paired", "half", True): MatmulTiling(64, 128, 64, 4, 3),
    # wgmma multiplies 64 rows at a time: of pixels above, here of input channels
    ("weights", "half", False): MatmulTiling(64, 32, 64, 4, 3),
    ("weights", "half", True): MatmulTiling(64, 128, 64, 4, 3),
}


def tiling_for(
    work: Work, channels: int, dtype: torch.dtype, tf32: bool, capability: int
) -> MatmulTiling:
    """The row of the table for a convolution of `channels` on its narrower side.

    tf32: whether float32 matmuls may round to TF32. capability: 80, 86, 90, ...
    """
    numbers: Format = "ieee"
    if dtype in (torch.float16, torch.bfloat16):
        numbers = "half"
    elif dtype == torch.float32 and tf32:
        numbers = "tf32"
    return (HOPPER if capability >= 90 else AMPERE)[work, numbers, channels > 32]
