"""Propose block sizes for the GPU at hand, to be copied by hand into kernels/.

    python benchmarks/tune.py gated_resnet --filters 160 --size 32 --batch 64 --dtype bfloat16
    python benchmarks/tune.py logistic_mixture

In a gated resnet one kind of matmul at a time, and one width of it, gets each candidate of
`tilings.MatmulTiling` while the others keep the table's. The time is that of a whole block, forward
and backward. Each tile of the mixture's kernel is timed beside a copy of as many bytes. A candidate
must give the table's results before it is timed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

N_MIX = 10
SHAPES = {"mnist": (256, 1, 28, 28), "cifar": (256, 3, 32, 32)}
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIKELIHOODS = ("continuous", "discretized", "gaussian")


def milliseconds(run: Callable[[], Any]) -> float:
    """Median of runs on the GPU."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))


def make_block(options: argparse.Namespace) -> Callable[[], list[Tensor]]:
    """A function that runs a 2x3 block with one skip, gains and dropout, forward and backward."""
    from dsmooth.kernels import gated_resnet as kernels
    from dsmooth.kernels.geometry import Dropout, Operands, Taps

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
    rest = Taps(2, 3, 1, 1), Dropout(layer=0, keep_from=2**22, scale=2.0)

    def run() -> list[Tensor]:
        y, saved = kernels.forward(given, *rest)
        return [y, *kernels.backward(grad_y, saved, given, *rest).values()]

    return run


@contextmanager
def chosen_by(name: str, choose: Callable[[Any], Any]) -> Iterator[None]:
    """Within, the kernels take what `choose` makes of the table's tilings."""
    from dsmooth.kernels import gated_resnet, tilings

    original = getattr(tilings, name)

    def install(function: Callable[..., Any]) -> None:
        setattr(tilings, name, function)
        gated_resnet.forward_plans.cache_clear()
        gated_resnet.backward_plans.cache_clear()

    install(lambda *shape: choose(original(*shape)))
    try:
        yield
    finally:
        install(original)


def tune_gated_resnet(options: argparse.Namespace) -> None:
    run = make_block(options)
    expected = run()
    print(f"the table: {milliseconds(run):.3f} ms a block, forward and backward")
    for name in ("matmul_tiling", "gradient_tiling"):
        used: dict[int, Any] = {}
        with chosen_by(name, lambda tiling: used.setdefault(tiling.block_n, tiling)):  # noqa: B023 - called in this turn
            run()
        heights, steps = (64, 128, 256), (32, 64)
        sizes = (heights, steps) if name == "matmul_tiling" else (steps, heights)
        for table in used.values():
            times = {}
            for p, k, warps, stages in itertools.product(*sizes, (4, 8), (2, 3, 4)):
                tiling = table._replace(block_p=p, block_k=k, num_warps=warps, num_stages=stages)
                time = trial(name, tiling, run, expected)
                if time is not None:
                    times[tiling] = time
            for tiling in sorted(times, key=times.__getitem__)[:3]:
                print(f"{name} of {table.block_n} columns: {times[tiling]:.3f} ms  {tiling}")


def trial(
    name: str, tiling: Any, run: Callable[[], list[Tensor]], expected: list[Tensor]
) -> float | None:
    """Milliseconds of the block with this tiling for its width, None where it cannot run."""
    try:
        with chosen_by(name, lambda table: tiling if table.block_n == tiling.block_n else table):
            for a, b in zip(run(), expected, strict=True):
                distance = (a - b).float().norm() / b.float().norm()
                if not distance < 2e-2:
                    sys.exit(f"{name} {tiling} is wrong by {distance:.2g}")
            return milliseconds(run)
    except Exception as error:  # resources of this card, or a limit of the compiler
        print(f"  {name} {tiling}: {type(error).__name__}", file=sys.stderr)
        return None


def tuned_mixture(shape: str, dtype: torch.dtype, layout: str, likelihood: str) -> str:
    """The frozen and the fastest tile of one case, in words."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    from dsmooth.kernels import logistic_mixture as kernels

    batch, channels, height, width = SHAPES[shape]
    n_params = N_MIX * (3 if channels == 1 else 10)
    x = torch.rand(batch, channels, height, width, device="cuda", dtype=dtype) * 2 - 1
    params = torch.randn(batch, n_params, height, width, device="cuda", dtype=dtype)
    params = params.to(memory_format=LAYOUTS[layout])
    log_prob = torch.empty(batch, height, width, device="cuda")
    grad_params = torch.empty_like(params)
    sigma = 0.5  # of "gaussian"

    def run(tiling: kernels.Tiling) -> None:
        given = (x, params, log_prob, None, grad_params)
        kernels.log_prob(*given, likelihood, (), sigma, tiling)

    frozen = kernels.log_prob_tiling(N_MIX, channels, likelihood)
    run(frozen)
    want = grad_params.clone()
    times = {}
    for block_p, num_warps in itertools.product((8, 16, 32, 64, 128), (1, 2, 4, 8, 16)):
        tiling = kernels.Tiling(block_p, frozen.block_k, num_warps)
        try:
            run(tiling)
        except (CompilationError, OutOfResources):
            continue  # more registers or shared memory than a block may have
        torch.testing.assert_close(grad_params, want, rtol=1e-2, atol=1e-3)
        times[tiling] = milliseconds(lambda: run(tiling))  # noqa: B023 - called in this turn
    times[frozen] = milliseconds(lambda: run(frozen))
    copy = milliseconds(lambda: grad_params.copy_(params))
    return "; ".join(
        f"{name} {tuple(tiling)} {times[tiling]:.3f} ms, {copy / times[tiling]:.0%} of a copy"
        for name, tiling in (("frozen", frozen), ("fastest", min(times, key=times.__getitem__)))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("op", choices=["gated_resnet", "logistic_mixture"])
    parser.add_argument("--filters", type=int, default=160)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tuning times kernels on a GPU, and this machine has no CUDA device")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {vars(options)}")
    if options.op == "gated_resnet":
        tune_gated_resnet(options)
        return
    for case in itertools.product(SHAPES, DTYPES, LAYOUTS, LIKELIHOODS):
        print(*case, tuned_mixture(*case))


if __name__ == "__main__":
    main()
