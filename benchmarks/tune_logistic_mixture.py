"""Propose tiles for the logistic mixture's Triton kernel by timing them on this GPU.

    python benchmarks/tune_logistic_mixture.py

Prints, per case, the tile of `log_prob_tiling` and the fastest one. Beside each stand its time and
the time of a copy of as many bytes as a share of it. It changes nothing: a better tile is written
into `log_prob_tiling` by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product

import torch

N_MIX = 10
BLOCK_PS, NUM_WARPS = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
SHAPES = {"mnist": (256, 1, 28, 28), "cifar": (256, 3, 32, 32)}
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here: PyTorch finds no CUDA device, and without one no tile can be timed")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for shape, dtype, layout, likelihood in product(
        SHAPES, DTYPES, LAYOUTS, ("continuous", "discretized", "gaussian")
    ):
        print(f"{shape} {dtype} {layout} {likelihood}: {tune(shape, dtype, layout, likelihood)}")
    return 0


def tune(shape: str, dtype: torch.dtype, layout: str, likelihood: str) -> str:
    """The frozen and the fastest tile of one case, in words."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    from dsmooth.kernels import logistic_mixture as kernels

    batch, channels, height, width = SHAPES[shape]
    n_params = N_MIX * (3 if channels == 1 else 10)
    x = torch.rand(batch, channels, height, width, device="cuda", dtype=dtype) * 2 - 1
    params = torch.randn(batch, n_params, height, width, device="cuda", dtype=dtype)
    params = params.to(memory_format=LAYOUTS[layout])
    log_prob = torch.empty(batch, height, width, device="cuda")
    grad_params = torch.empty_like(params)
    sigma = 0.5  # of "gaussian"

    def run(tiling: kernels.Tiling) -> Callable[[], None]:
        return lambda: kernels.log_prob(
            x, params, log_prob, None, grad_params, likelihood, (), sigma, tiling
        )

    frozen = kernels.log_prob_tiling(N_MIX, channels, likelihood)
    run(frozen)()
    want = grad_params.clone()
    times = {}
    for block_p, num_warps in product(BLOCK_PS, NUM_WARPS):
        tiling = kernels.Tiling(block_p, frozen.block_k, num_warps)
        try:
            run(tiling)()
        except (CompilationError, OutOfResources):
            continue  # more registers or shared memory than a block may have
        torch.testing.assert_close(grad_params, want, rtol=1e-2, atol=1e-3)
        times[tiling] = do_bench(run(tiling), return_mode="median")
    times[frozen] = do_bench(run(frozen), return_mode="median")
    copy = do_bench(lambda: grad_params.copy_(params), return_mode="median")
    fastest = min(times, key=times.__getitem__)
    return "; ".join(
        f"{name} {tuple(tiling)} {times[tiling]:.3f} ms, {copy / times[tiling]:.0%} of a copy"
        for name, tiling in (("frozen", frozen), ("fastest", fastest))
    )


if __name__ == "__main__":
    sys.exit(main())
