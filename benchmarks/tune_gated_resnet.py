"""Propose rows of kernels/tilings.py for the GPU at hand.

    python benchmarks/tune_gated_resnet.py --filters 160 --size 32 --batch 64 --dtype bfloat16

One kind of work at a time gets each candidate's block sizes while the others keep the table's; the
time is that of a whole block, forward and backward. A candidate must give the table's results
before it is timed. Printed are the table's time and the best candidates', to be copied by hand.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

ROUNDS = 20


def candidates(work: str) -> Iterator[tuple[int, int, int, int, int]]:
    """Every (block_p, block_n, block_k, num_warps, num_stages) worth a trial: at most 4 warps."""
    for sizes in itertools.product((32, 64, 128), (32, 64, 128), (32, 64), (2, 4), (2, 3, 4)):
        accumulator = sizes[2] * sizes[1] if work == "weights" else sizes[0] * sizes[1]
        if accumulator <= 128 * 128 and accumulator // (32 * sizes[3]) <= 128:
            yield sizes


def milliseconds(run: Callable[[], Any]) -> float:
    """Median over ROUNDS of one run on the GPU, after three of warm-up."""
    times = []
    for i in range(ROUNDS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def make_block(options: argparse.Namespace) -> Callable[[], list[Tensor]]:
    """A function that runs a 2x3 block with one skip, gains and dropout, forward and backward."""
    from dsmooth.kernels import gated_resnet as kernels
    from dsmooth.kernels.geometry import Taps

    torch.manual_seed(0)
    f, dtype = options.filters, getattr(torch, options.dtype)

    def image() -> Tensor:
        values = torch.randn(options.batch, f, options.size, options.size, device="cuda")
        return values.to(dtype).to(memory_format=torch.channels_last)

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    x, skip, grad_y = image(), image(), image()
    weights = [parameter(f, 2 * f, 2, 3), parameter(f), parameter(2 * f, 2 * f, 2, 3)]
    weights += [parameter(2 * f), parameter(f, 2 * f, 1, 1), parameter(f)]
    gains = [parameter(f), parameter(2 * f), parameter(f)]
    seed = torch.zeros((), dtype=torch.int64, device="cuda")
    rest = ([skip], weights, gains, seed, Taps(2, 3, 1, 1), (2**22, 2.0), 0)

    def run() -> list[Tensor]:
        y, h = kernels.forward(x, *rest)
        return [y, *kernels.backward(grad_y, x, h, *rest)]

    return run


def tune(options: argparse.Namespace) -> None:
    from dsmooth.kernels import launch as launching
    from dsmooth.kernels import tilings

    run = make_block(options)
    expected = run()
    torch.cuda.synchronize()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {vars(options)}")
    print(f"the table: {milliseconds(run):.3f} ms a block, forward and backward")
    for work in ("single", "paired", "weights"):
        found = []
        for sizes in candidates(work):
            tiling = tilings.MatmulTiling(*sizes)

            def choose(
                kind: str, *shape: Any, work: str = work, tiling: tilings.MatmulTiling = tiling
            ) -> tilings.MatmulTiling:
                return tiling if kind == work else tilings.tiling_for(kind, *shape)

            launching.tiling_for = choose
            try:
                got = run()
                torch.cuda.synchronize()
            except Exception as error:  # resources of this card, or a limit of the compiler
                print(f"  {work} {tiling}: {type(error).__name__}", file=sys.stderr)
                continue
            for a, b in zip(got, expected, strict=True):
                distance = (a - b).float().norm() / b.float().norm()
                if not distance < 2e-2:
                    raise RuntimeError(f"{work} {tiling} is wrong by {distance:.2g}")
            found.append((milliseconds(run), tiling))
        launching.tiling_for = tilings.tiling_for
        for time, tiling in sorted(found)[:3]:
            print(f"{work:8s} {time:.3f} ms  {tiling}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--filters", type=int, default=160)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("tuning times kernels on a GPU, and this machine has no CUDA device")
    tune(options)


if __name__ == "__main__":
    main()
