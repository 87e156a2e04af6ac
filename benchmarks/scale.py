"""How long many samples take on many machines: a model of the sampler's time, and its check.

    python benchmarks --scale

A worker (a CPU core) draws a slice of b >= 2 images in one sweep, which takes

    stages * tau + max(b * FLOP / rate, weight bytes / bandwidth)

stages: matrix products of a sweep that must follow one another; tau: the time of the smallest;
FLOP: of one image, with the outputs of each product rounded up to whole vectors of 16; rate: what
the products of a worker reach; weight bytes: those that a sweep reads, an operation's each time
that it runs; bandwidth: of reading as much as a pixel reads, again and again. tau and bandwidth
are measured; rate is taken from one case per dtype (REFERENCE), and all other cases of the results
check the prediction. Workers do not wait for one another. So N processes under torchrun, each with
its share of the image numbers, take 1/N of the time but for the last sweep, which may not be full.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from rich.table import Table

from benchmarks import results
from benchmarks.networks import CIFAR, MNIST, Network, dependent_stages, padded_flops, weight_bytes

REFERENCE = {"float32": "mnist-64", "bfloat16": "mnist-64-bf16"}
BYTES = {"float32": 4, "bfloat16": 2}
SLICE = 16  # images that a worker draws at a time


@dataclass(frozen=True)
class Worker:
    """Limits of one core for one network and dtype."""

    rate: float  # FLOP/s
    bandwidth: float  # bytes/s
    tau: float  # seconds


@dataclass(frozen=True)
class Sweep:
    """The work of a sweep: dependent stages, FLOP of an image, numbers of weights that are read."""

    stages: int
    flops: float
    weights: int

    @classmethod
    @lru_cache
    def of(cls, network: Network, conditioning: str) -> Sweep:
        model, size = network.build(conditioning), network.size
        return cls(
            dependent_stages(model, size, size),
            padded_flops(model, size, size),
            weight_bytes(model, size, size, torch.int8),
        )


def seconds(
    worker: Worker,
    sweeps: Sequence[Sweep],
    n_images: int,
    workers: int,
    dtype: str = "float32",
) -> float:
    """Of n_images over so many workers, each image drawn by one model after the other."""
    share = math.ceil(n_images / workers)
    full_sweeps, rest = divmod(share, SLICE)
    total = 0.0
    for b in [SLICE] * full_sweeps + [rest] * (rest > 0):
        for sweep in sweeps:
            reading = sweep.weights * BYTES[dtype] / worker.bandwidth
            total += sweep.stages * worker.tau + max(b * sweep.flops / worker.rate, reading)
    return total


def calibrate(measured: list[results.Result], dtype: str, network: Network) -> Worker:
    """The rate from the reference case of `dtype`; what memory gives, from a case of `network`.

    Raises ValueError if the results lack one of them.
    """
    sampler = {r["case"]: r for r in measured if r["suite"] == "sampler"}
    of_network = [
        r
        for r in sampler.values()
        if "read" in r["limits"]
        and (r["shape"][1:], r["dtype"]) == (list(network.shape(1)[1:]), dtype)
    ]
    if REFERENCE[dtype] not in sampler or not of_network:
        raise ValueError(f"the results lack sampler {REFERENCE[dtype]}, or {dtype} of a network")
    reference = sampler[REFERENCE[dtype]]
    sweep = Sweep.of(MNIST, "none")
    share = reference["shape"][0] / reference["threads"]
    waiting = share / SLICE * sweep.stages * reference["seconds_per_stage"]
    rate = share * sweep.flops / (reference["seconds"]["cached"][0] - waiting)
    bandwidths = [r["limits"]["read"][1] / r["threads"] for r in of_network]
    taus = [r["seconds_per_stage"] for r in of_network]
    return Worker(rate, statistics.median(bandwidths), statistics.median(taus))


def check(measured: list[results.Result]) -> Iterator[tuple[str, float, float]]:
    """(case, predicted seconds, measured seconds) of every case that is not a reference."""
    for result in measured:
        network = MNIST if result["shape"][1:] == [1, 28, 28] else CIFAR
        batch, threads = result["shape"][0] if result["shape"] else 0, result["threads"]
        if result["suite"] == "sampler" and "plain" in result["ratios"]:
            conditionings: tuple[str, ...] = ("none",)
        elif result["suite"] == "two_step":
            conditionings = ("none", "concat" if "concat" in result["case"] else "stack")
        else:
            continue
        # Products of one row, where a slice is one image or less, are not what the model describes.
        if result["case"] in REFERENCE.values() or batch < 2 * threads:
            continue
        dtype = result["dtype"]
        worker = calibrate(measured, dtype, network)
        sweeps = [Sweep.of(network, conditioning) for conditioning in conditionings]
        predicted = seconds(worker, sweeps, batch, threads, dtype)
        yield results.name_of(result), predicted, result["seconds"][result["ours"]][0]


def tables(measured: list[results.Result], name: str) -> tuple[Table, Table]:
    """The check of the model against these results, and what it predicts."""
    return checks_table(measured, name), predictions_table(measured)


def checks_table(measured: list[results.Result], name: str) -> Table:
    table = Table(title=f"Predicted and measured ({name})", title_justify="left")
    for column in ("case", "predicted", "measured", "error"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case, predicted, actual in check(measured):
        table.add_row(
            case, f"{predicted:.3g} s", f"{actual:.3g} s", f"{predicted / actual - 1:+.0%}"
        )
    return table


TASKS = (
    ("50,000 two-step CIFAR-10 samples, F160, stack", CIFAR, ("none", "stack"), 50_000),
    ("1,000,000 two-step MNIST samples, F40, stack", MNIST, ("none", "stack"), 1_000_000),
    ("1,000,000 two-step MNIST samples, F40, concat", MNIST, ("none", "concat"), 1_000_000),
)


def predictions(measured: list[results.Result]) -> Iterator[tuple[str, str, int, float]]:
    """(what, dtype, cores, seconds)"""
    for what, network, conditionings, n_images in TASKS:
        for dtype in REFERENCE:
            worker = calibrate(measured, dtype, network)
            sweeps = [Sweep.of(network, conditioning) for conditioning in conditionings]
            for cores in (2, 64, 1024):
                yield what, dtype, cores, seconds(worker, sweeps, n_images, cores, dtype)


def predictions_table(measured: list[results.Result]) -> Table:
    table = Table(title="Predicted, for cores like these", title_justify="left")
    for column in ("samples", "dtype", "cores", "time"):
        table.add_column(column, justify="right" if column in ("cores", "time") else "left")
    for what, dtype, cores, predicted in predictions(measured):
        table.add_row(what, dtype, f"{cores:,}", duration(predicted))
    return table


def duration(predicted: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if predicted >= 2 * length:
            return f"{predicted / length:.3g} {unit}"
    return f"{predicted:.3g} s"
