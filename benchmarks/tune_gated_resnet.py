"""Propose rows of kernels/tilings.py for the GPU at hand.

    python benchmarks/tune_gated_resnet.py --filters 160 --size 32 --batch 64 --dtype bfloat16

One kind of work at a time, and one width of it, gets each candidate's block sizes while the others
keep the table's; the time is that of a whole block, forward and backward. A candidate must give the
table's results before it is timed. Printed are the table's time and the best candidates', to be
copied by hand.
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


def candidates(name: str, table: Any) -> Iterator[Any]:
    """Tilings worth a trial instead of the table's, for the same columns."""
    heights, steps = (64, 128, 256), (32, 64)
    sizes = (heights, steps) if name == "matmul_tiling" else (steps, heights)
    for block_p, block_k, warps, stages in itertools.product(*sizes, (4, 8), (2, 3, 4)):
        yield table._replace(block_p=block_p, block_k=block_k, num_warps=warps, num_stages=stages)


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
    from dsmooth.kernels.operands import Dropout, Operands

    torch.manual_seed(0)
    f, dtype = options.filters, getattr(torch, options.dtype)

    def image() -> Tensor:
        values = torch.randn(options.batch, f, options.size, options.size, device="cuda")
        return values.to(dtype).to(memory_format=torch.channels_last)

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    grad_y = image()
    seed = torch.zeros((), dtype=torch.int64, device="cuda")
    given = Operands(
        x=image(), skip=image(), skip_2=None,
        conv_in=parameter(f, 2 * f, 2, 3), bias_in=parameter(f),
        conv_out=parameter(2 * f, 2 * f, 2, 3), bias_out=parameter(2 * f),
        nin_skip=parameter(f, 2 * f, 1, 1), bias_nin=parameter(f),
        gain_in=parameter(f), gain_out=parameter(2 * f), gain_nin=parameter(f),
        image_bias=None, seed=seed,
    )  # fmt: skip
    rest = Taps(2, 3, 1, 1), Dropout(seed, layer=0, keep_from=2**22, scale=2.0)

    def run() -> list[Tensor]:
        y, saved = kernels.forward(given, *rest)
        return [y, *kernels.backward(grad_y, saved, given, *rest).values()]

    return run


def tune(options: argparse.Namespace) -> None:
    run = make_block(options)
    expected = run()
    torch.cuda.synchronize()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {vars(options)}")
    print(f"the table: {milliseconds(run):.3f} ms a block, forward and backward")
    for name in ("matmul_tiling", "gradient_tiling"):
        for table in tables_of(name, run):
            found = [
                (time, tiling)
                for tiling in candidates(name, table)
                if (time := trial(name, tiling, run, expected)) is not None
            ]
            for time, tiling in sorted(found)[:3]:
                print(f"{name} of {table.block_n} columns: {time:.3f} ms  {tiling}")


def tables_of(name: str, run: Callable[[], Any]) -> list[Any]:
    """The tilings that a block uses now, one for each width."""
    from dsmooth.kernels import tilings

    used: dict[int, Any] = {}
    original = getattr(tilings, name)

    def note(*shape: Any) -> Any:
        tiling = original(*shape)
        used.setdefault(tiling.block_n, tiling)
        return tiling

    install(name, note)
    run()
    install(name, original)
    return list(used.values())


def install(name: str, choose: Callable[..., Any]) -> None:
    """Have the kernels choose tilings so, and forget what was worked out before."""
    from dsmooth.kernels import gated_resnet_plans, tilings

    setattr(tilings, name, choose)
    gated_resnet_plans.forward_plan.cache_clear()
    gated_resnet_plans.backward_plan.cache_clear()
    tilings.block_gradient_plans.cache_clear()


def trial(
    name: str, tiling: Any, run: Callable[[], list[Tensor]], expected: list[Tensor]
) -> float | None:
    """Milliseconds of the block with this tiling for its width, None where it cannot run."""
    from dsmooth.kernels import tilings

    original = getattr(tilings, name)

    def choose(*shape: Any) -> Any:
        table = original(*shape)
        return tiling if table.block_n == tiling.block_n else table

    install(name, choose)
    try:
        got = run()
        torch.cuda.synchronize()
        for a, b in zip(got, expected, strict=True):
            distance = (a - b).float().norm() / b.float().norm()
            if not distance < 2e-2:
                sys.exit(f"{name} {tiling} is wrong by {distance:.2g}")
        return milliseconds(run)
    except Exception as error:  # resources of this card, or a limit of the compiler
        print(f"  {name} {tiling}: {type(error).__name__}", file=sys.stderr)
        return None
    finally:
        install(name, original)


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
