"""How long many samples take on many machines: a model of the sampler's time, and its check.

    python benchmarks --scale

A worker (a CPU core) draws a slice of b images in one sweep, which takes

    stages * tau + b * FLOP / rate

stages: matrix products of a sweep that must follow one another; tau: the time of the smallest;
FLOP: of one image, with the outputs of each product rounded up to whole vectors of 16; rate: what
the products of a worker reach. tau is measured; rate is taken from one case per dtype (REFERENCE),
and all other cases of the results check the prediction. Workers do not wait for one another, so N
processes under torchrun, each with its share of the image numbers, take 1/N of the time, up to the
last, partly filled sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rich.table import Table

from benchmarks import results
from benchmarks.networks import CIFAR, MNIST, Network, dependent_stages, padded_flops

REFERENCE = {"float32": "mnist-64", "bfloat16": "mnist-64-bf16"}
SLICE = 16  # images that a worker draws at a time


@dataclass(frozen=True)
class Worker:
    """Limits of one core, in one dtype."""

    rate: float  # FLOP/s
    tau: float  # seconds


@lru_cache
def work_of(network: Network, conditioning: str) -> tuple[int, float]:
    """(dependent stages of a sweep, FLOP of an image)"""
    model = network.build(conditioning)
    size = network.size
    return dependent_stages(model, size, size), padded_flops(model, size, size)


def seconds(
    worker: Worker, network: Network, conditionings: tuple[str, ...], n_images: int, workers: int
) -> float:
    """Of n_images, each drawn by the models of these conditionings, one after the other."""
    share = math.ceil(n_images / workers)
    full_sweeps, rest = divmod(share, SLICE)
    slices = [SLICE] * full_sweeps + [rest] * (rest > 0)
    total = 0.0
    for conditioning in conditionings:
        stages, flops = work_of(network, conditioning)
        total += len(slices) * stages * worker.tau + share * flops / worker.rate
    return total


def calibrate(measured: list[results.Result], dtype: str) -> Worker:
    """From the reference case, whose two threads are two workers.

    Raises ValueError if the results lack it.
    """
    for result in measured:
        if (result["suite"], result["case"]) == ("sampler", REFERENCE[dtype]):
            stages, flops = work_of(MNIST, "none")
            tau = result["seconds_per_stage"]
            share = result["shape"][0] / result["threads"]
            spent = result["seconds"]["cached"][0] - share / SLICE * stages * tau
            return Worker(share * flops / spent, tau)
    raise ValueError(f"the results lack the case sampler {REFERENCE[dtype]}")


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
        # Fewer images than threads share a slice: a team, which this model does not describe.
        if result["case"] in REFERENCE.values() or batch < threads:
            continue
        worker = calibrate(measured, result["dtype"])
        predicted = seconds(worker, network, conditionings, batch, threads)
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


PLANS = (
    ("50,000 two-step CIFAR-10 samples, F160, stack", CIFAR, ("none", "stack"), 50_000),
    ("1,000,000 two-step MNIST samples, F40, stack", MNIST, ("none", "stack"), 1_000_000),
    ("1,000,000 two-step MNIST samples, F40, concat", MNIST, ("none", "concat"), 1_000_000),
)


def predictions(measured: list[results.Result]) -> Iterator[tuple[str, str, int, float]]:
    """(what, dtype, cores, seconds)"""
    for what, network, conditionings, n_images in PLANS:
        for dtype in REFERENCE:
            worker = calibrate(measured, dtype)
            for cores in (2, 64, 1024):
                yield what, dtype, cores, seconds(worker, network, conditionings, n_images, cores)


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
