"""Making batches: the wait of a training step beside the network.

A batch needs an order, which is a function of the seed; bytes; and smoothing noise, which is a
function of the image's index. Other trainers have random states there. The contender is a
DataLoader over the same tensors, with noise from torch.randn.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Bench, Work, copy, quick, smoke
from dsmooth import GaussianSmoothing
from dsmooth.data import ImageDataset, indices_at, to_float

pytestmark = pytest.mark.usefixtures("one_thread")
SMOOTHING = GaussianSmoothing(0.5)


def random_images(n: int, channels: int, size: int) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), generator=generator)
    return ImageDataset(images.to(torch.uint8), None, "random", "train", "random bytes")


@pytest.mark.parametrize(
    ("images", "batch"),
    [
        smoke((16, 1, 8), 4, id="small"),
        quick((60_000, 1, 28), 80, id="mnist"),
        quick((50_000, 3, 32), 80, id="cifar"),
    ],
)
def bench_batches(bench: Bench, images: tuple[int, int, int], batch: int) -> None:
    """Noisy batches in shuffled order."""
    dataset = random_images(*images)
    seen = 0

    def ours() -> torch.Tensor:
        nonlocal seen
        x = dataset.batch(indices_at(len(dataset), seen, batch, seed=0))
        x_tilde = SMOOTHING.sample(x, seed=0, first_index=seen)
        seen += batch
        return x_tilde

    loader = DataLoader(TensorDataset(dataset.images), batch_size=batch, shuffle=True)
    batches = repeat_forever(loader)

    def loaded() -> torch.Tensor:
        x = to_float(next(batches)[0])
        return x + 0.5 * torch.randn_like(x)

    x_tilde = ours()
    assert x_tilde.shape == loaded().shape
    noise = x_tilde - dataset.batch(indices_at(len(dataset), 0, batch, seed=0))
    assert abs(float(noise.std()) - 0.5) < 0.1
    values = batch * dataset.images[0].numel()
    bench.compare(
        {"DataLoader": loaded, "ours": ours},
        "ours",
        limits={"copy": copy},
        rounds=30,
        warmup=3,
        shape=x_tilde.shape,
        work=Work(images=batch, bytes=5 * values),  # a byte is read, a float32 written
    )


def repeat_forever(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader
