"""How long a training step takes on many GPUs: a model of its time, from what is assumed below.

    python benchmarks --scale

A step of n GPUs with b images each computes b * 3 * FLOP / rate, two thirds of it in the backward.
Meanwhile DistributedDataParallel sums the gradients in a ring, through which each byte passes
2 (n - 1) / n times: inside a machine from GPU to GPU, and between machines over a network that the
GPUs of a machine share. All buckets but the last travel during the backward, so a step takes

    compute + last bucket's time + max(0, all-reduce - last bucket's time - backward)

or as long as the host takes to launch it: several processes do not replay a CUDA graph. Nothing
here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from benchmarks.networks import CIFAR, Network, flops_of_forward


@dataclass(frozen=True)
class Cluster:
    """GPUs in machines, and what connects them; the defaults are the assumptions."""

    gpus: int
    gpus_per_machine: int = 8
    rate: float = 446e12  # FLOP/s of a GPU in training, 47 % of an H100: docs/kernels.md
    inside: float = 300e9  # bytes/s between GPUs of a machine
    between: float = 12.5e9  # bytes/s between machines: 100 Gb/s
    launches: float = 0.027  # seconds of the host for a step that is not replayed

    @property
    def machines(self) -> int:
        return -(-self.gpus // self.gpus_per_machine)

    def all_reduce(self, n_bytes: float) -> float:
        """Seconds until the sum of so many bytes of each GPU is on all of them."""
        local = min(self.gpus, self.gpus_per_machine)
        seconds = 2 * (local - 1) / local * n_bytes / self.inside
        if self.machines > 1:
            seconds += 2 * (self.machines - 1) / self.machines * n_bytes / self.between
        return seconds


BUCKET = 25 * 2**20  # bytes: DistributedDataParallel's own


def step_seconds(cluster: Cluster, flops: float, parameters: int, images: int) -> float:
    """Of one step with `images` on each GPU; flops: of an image's forward."""
    compute = images * 3 * flops / cluster.rate
    gradient = 4 * parameters
    travel = cluster.all_reduce(gradient)
    last = cluster.all_reduce(min(BUCKET, gradient))
    step = compute + last + max(0.0, travel - last - 2 / 3 * compute)
    return step if cluster.gpus == 1 else max(step, cluster.launches)


TASKS = (
    ("CIFAR-10, F160, 128 images a GPU", CIFAR, 128),
    ("CIFAR-10, F160, 64 images a GPU", CIFAR, 64),
    ("CIFAR-10, F160, 16 images a GPU", CIFAR, 16),
)
GPUS = (1, 2, 8, 16, 64)


def predictions() -> Iterator[tuple[str, int, int, float, float]]:
    """(what, GPUs, machines, images/s, fraction of as many single GPUs)"""
    for what, network, images in TASKS:
        flops, parameters = size_of(network)
        alone = step_seconds(Cluster(1), flops, parameters, images)
        for gpus in GPUS:
            cluster = Cluster(gpus)
            seconds = step_seconds(cluster, flops, parameters, images)
            yield what, gpus, cluster.machines, gpus * images / seconds, alone / seconds


def size_of(network: Network) -> tuple[float, int]:
    """FLOP of an image's forward, and parameters."""
    model = network.build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return flops_of_forward(model, network.shape(1)), parameters


def table() -> Table:
    made = Table(title="Training on H100s, predicted: no GPU has run it", title_justify="left")
    for column in ("task", "GPUs", "machines", "images/s", "of linear"):
        made.add_column(column, justify="left" if column == "task" else "right")
    for what, gpus, machines, rate, fraction in predictions():
        made.add_row(what, str(gpus), str(machines), f"{rate:,.0f}", f"{fraction:.0%}")
    return made


def rows() -> Iterator[str]:
    """The same for a page."""
    yield "| training | GPUs | machines | images/s | of linear |"
    yield "|---|---:|---:|---:|---:|"
    for what, gpus, machines, rate, fraction in predictions():
        yield f"| {what} | {gpus} | {machines} | {rate:,.0f} | {fraction:.0%} |"
