"""Propose block sizes for the GPU at hand, to be copied by hand into kernels/.

    python benchmarks/tune.py block-cifar block-mnist loss

The time is that of a case of on_gpu.py. One table of block sizes at a time, and one width of its
tiles, gets each candidate while all others stay. A candidate must give the table's results before
it is timed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from triton.testing import do_bench

from benchmarks.on_gpu import CASES, Card, cases_of
from dsmooth.kernels import gated_resnet, logistic_mixture, tilings
from dsmooth.training.cuda_graph import ReplayedStep

Tensors = Callable[[], list[Tensor]]
TALL, SHORT = (64, 128, 256), (32, 64)
LAUNCH = {"num_warps": (4, 8), "num_stages": (2, 3, 4)}
# Functions that choose a tiling, and the candidates of some of its fields.
TABLES: dict[str, tuple[ModuleType, dict[str, tuple[int, ...]]]] = {
    "matmul_tiling": (tilings, {"block_p": TALL, "block_k": SHORT, **LAUNCH}),
    "gradient_tiling": (tilings, {"block_p": SHORT, "block_k": TALL, **LAUNCH}),
    "log_prob_tiling": (
        logistic_mixture,
        {"block_p": (8, 16, 32, 64, 128), "num_warps": (1, 2, 4, 8, 16)},
    ),
}


@contextmanager
def chosen_by(table: str, choose: Callable[[Any], Any]) -> Iterator[None]:
    """Within, the kernels take what `choose` makes of the tilings of a table."""
    module, _ = TABLES[table]
    original = getattr(module, table)

    def install(function: Callable[..., Any]) -> None:
        setattr(module, table, function)
        gated_resnet.prepare_forward.cache_clear()
        gated_resnet.prepare_backward.cache_clear()

    install(lambda *shape: choose(original(*shape)))
    try:
        yield
    finally:
        install(original)


def width(tiling: Any) -> int:
    """Columns of a tile of a matmul."""
    return int(getattr(tiling, "block_n", 0))


def milliseconds(table: str, tiling: Any, run: Tensors, expected: list[Tensor]) -> float:
    """Time of `run`, replayed as a CUDA graph, with this tiling for its width."""
    with chosen_by(table, lambda usual: tiling if width(usual) == width(tiling) else usual):
        for got, want in zip(run(), expected, strict=True):
            distance = (got - want).float().norm() / want.float().norm()
            if not distance < 2e-2:
                sys.exit(f"{table} {tiling} is wrong by {distance:.2g}")
        return float(do_bench(ReplayedStep(run, expected[0].device), return_mode="median"))


def tune(table: str, run: Tensors) -> None:
    """Print the three fastest tilings of each width that a table has for `run`."""
    used: dict[int, Any] = {}
    with chosen_by(table, lambda tiling: used.setdefault(width(tiling), tiling)):
        expected = run()
    for usual in used.values():
        times = {usual: milliseconds(table, usual, run, expected)}
        fields = TABLES[table][1]
        for values in itertools.product(*fields.values()):
            tiling = usual._replace(**dict(zip(fields, values, strict=True)))
            try:
                times[tiling] = milliseconds(table, tiling, run, expected)
            except Exception as error:  # resources of this card, or a limit of the compiler
                print(f"  {table} {tiling}: {type(error).__name__}", file=sys.stderr)
        for tiling in (usual, *sorted(times, key=times.__getitem__)[:3]):
            print(f"{table}: {times[tiling]:.3f} ms  {tiling}", flush=True)


def main() -> None:
    words = sys.argv[1:]
    if not words or not all(map(cases_of, words)):
        sys.exit(f"usage: tune.py CASE [CASE ...], the first words of {', '.join(CASES)}")
    if not torch.cuda.is_available():
        sys.exit("tuning times kernels on a GPU, and this machine has no CUDA device")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for case in (case for word in words for case in cases_of(word)):
        print(case)
        run: Any = CASES[case](Card(torch.device("cuda"), tiny=False)).run
        for table in TABLES:
            tune(table, run)


if __name__ == "__main__":
    main()
