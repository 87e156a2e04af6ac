"""forks.py: forked processes compute what their parent does, after it computed with two threads.

Prints a line for each kind of fork. A child that waits for ever is ended by its alarm.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dsmooth import ModelConfig, PixelCNNpp
from dsmooth.functional import use_impl
from dsmooth.sampling import CachedSampler

SECONDS = 30
SAMPLES = {"height": 8, "width": 8, "threads": 2}


def make_model() -> PixelCNNpp:
    torch.manual_seed(0)
    config = ModelConfig(n_filters=8, n_resnet=1, n_mix=2, dropout=0.0, likelihood="discretized")
    return PixelCNNpp(config).eval()


def compute(model: PixelCNNpp) -> list[Tensor]:
    """Samples, and a loss and its gradient, large enough for torch to share out."""
    x = torch.linspace(-1, 1, 16 * 32 * 32).view(16, 1, 32, 32)
    with use_impl("native"):
        loss = model.log_prob(x).sum()
    (gradient,) = torch.autograd.grad(loss, [model.head.bias])
    return [CachedSampler(model).sample(4, **SAMPLES), loss.detach(), gradient]


def same(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    """Samples bit by bit; sums but for their order, which the number of threads decides."""
    return torch.equal(mine[0], theirs[0]) and all(
        torch.allclose(a, b, rtol=1e-4) for a, b in zip(mine[1:], theirs[1:], strict=True)
    )


def fork(model: PixelCNNpp, expected: list[Tensor]) -> int:
    """The exit status of a child that computes the same."""
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        try:
            os._exit(not same(compute(model), expected))
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_beside_a_sampler(model: PixelCNNpp, expected: list[Tensor]) -> int:
    """`fork` while another thread of the parent draws."""
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            CachedSampler(model).sample(4, **SAMPLES)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        return fork(model, expected)
    finally:
        done.set()
        thread.join()


class Drawn(IterableDataset[list[Tensor]]):
    """Result of `compute`, in a worker of a DataLoader."""

    def __init__(self, model: PixelCNNpp) -> None:
        self.model = model

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield compute(self.model)


def main() -> None:
    torch.set_num_threads(2)
    model = make_model()
    expected = compute(model)
    print("os.fork", fork(model, expected))
    print("beside a sampler", fork_beside_a_sampler(model, expected))
    loader = DataLoader(
        Drawn(model),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=SECONDS,
    )
    print("DataLoader", int(not same(next(iter(loader)), expected)))
    assert torch.get_num_threads() == 2


if __name__ == "__main__":
    main()
