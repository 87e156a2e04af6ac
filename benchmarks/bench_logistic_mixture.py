"""Loss and gradient of the logistic mixture on one thread: native, eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import Bench, Work, full, quick, smoke
from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref
from dsmooth.machine import keep_freed_memory

pytestmark = pytest.mark.usefixtures("native", "one_thread")
SHAPES = {
    "small": (2, 1, 8, 8),
    "mnist": (64, 1, 28, 28),
    "mnist-16": (16, 1, 28, 28),
    "cifar": (16, 3, 32, 32),
}
# K, and the op's keyword arguments.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "continuous": (10, {"likelihood": "continuous"}),
    "discretized": (10, {"likelihood": "discretized"}),
    "all": (5, {"likelihood": "discretized", "atoms": "all"}),
}


@pytest.mark.parametrize(
    ("shape", "kind", "gradient"),
    [
        smoke("small", "continuous", True, id="small"),
        *(
            level(shape, kind, gradient, id=f"{shape}-{kind}-{what}")
            for shape, level, kinds in (
                ("mnist", full, ("continuous", "discretized")),
                ("cifar", quick, ("continuous", "discretized")),
                ("mnist-16", quick, ("all",)),
            )
            for kind in kinds
            for gradient, what in ((False, "forward"), (True, "gradient"))
        ),
    ],
)
def bench_loss(bench: Bench, shape: str, kind: str, gradient: bool) -> None:
    x, params = images_and_params(SHAPES[shape], kind, gradient)
    contenders = make_contenders(x, params, kind, gradient, compiled=not bench.smoke)
    check(contenders)
    keep_freed_memory()
    # params are read and, with the gradient, one number is written for each.
    moved = 4 * (params.numel() * (2 if gradient else 1) + x.numel())
    turns = bench.compare(
        contenders,
        "native",
        limits=["copy"],
        rounds=15,
        warmup=2,
        before=2,
        shape=x.shape,
        work=Work(images=len(x), bytes=moved),
    )
    if turns and bench.case == "cifar-continuous-gradient":  # on a busy machine, too
        assert turns.ratio("eager", "native").median >= 2


def images_and_params(
    shape: tuple[int, int, int, int], kind: str, gradient: bool
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, shape, generator=generator)
    n_mix, options = KINDS[kind]
    n_params = n_mix * (3 if channels == 1 else 10) + 256 * bool(options.get("atoms"))
    params = torch.randn(batch, n_params, height, width, generator=generator)
    return levels.float() / 127.5 - 1, params.requires_grad_(gradient)


def make_contenders(
    x: Tensor, params: Tensor, kind: str, gradient: bool, compiled: bool, impl: Any = "native"
) -> dict[str, Callable[[], Tensor]]:
    _, options = KINDS[kind]

    def step(log_prob: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            loss = log_prob(x, params).sum()
            return torch.autograd.grad(loss, params)[0] if gradient else loss

        return run

    def reference(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob_ref(x, params, **options)

    def ours(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, params, impl=impl, **options)

    contenders = {"eager": step(reference), impl: step(ours)}
    if compiled:
        torch.compiler.reset()
        contenders["compile"] = step(torch.compile(reference, fullgraph=True))
    return contenders


def check(contenders: dict[str, Callable[[], Tensor]], rtol: float = 1e-4) -> None:
    want = contenders["eager"]()
    for run in contenders.values():
        torch.testing.assert_close(run(), want, rtol=rtol, atol=rtol / 10 * want.abs().max().item())
