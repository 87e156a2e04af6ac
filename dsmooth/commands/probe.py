"""`dsmooth probe`: a pair from folders, accuracies into a folder."""

from __future__ import annotations

from typing import Any

from ..distributed import process_group, rank_and_size
from ..evaluate.probe import PIXELS, best_probe, probe_pair
from ..files import check_writable, printable, write_atomically
from ..machine import choose_device, use_threads
from ..models import load_models
from ..report.plots import probe_png
from ..tables import Table, decimals
from .evaluate import choose_data
from .options import Probe


def probe(options: Probe) -> None:
    """Carry out `dsmooth probe`: probes.json and a PNG per network."""
    check_writable(options.out / "probes.json")
    with process_group():
        use_threads(options.execution.threads)
        device, path = choose_device(options.execution.device), options.out / "probes.json"
        models = load_models(options.models)
        pair = models.pair
        choice = choose_data(models, options.dataset)
        train_set, test_set = choice.load("train"), choice.load("test")
        models.to(device)
        results = probe_pair(
            pair,
            train_set,
            test_set,
            options.settings,
            path,
            plain=models.plain,
            precision=options.execution.precision,
        )
    if rank_and_size()[0] > 0:
        return
    for name in ("noisy", "denoiser"):
        picture = probe_png(results["accuracy"], name, transparent=False)
        write_atomically(options.out / f"{name}.png", picture)
    print_accuracies(results)
    print(f"wrote {printable(path)} and {printable(options.out)}/*.png")


def print_accuracies(results: dict[str, Any]) -> None:
    """Print a table with a column per network and a row per block."""
    accuracy, count = results["accuracy"], results["asked"]["test_images"]
    columns = [name for name in accuracy if name != PIXELS]
    blocks = accuracy["noisy"]
    rows = [[block, *(in_percent(accuracy[name][block]) for name in columns)] for block in blocks]
    Table(["after block", *columns], rows, f"test accuracy in %, {count:,} images").show()
    print(f"pixels: {in_percent(accuracy[PIXELS][PIXELS])}; ± is the standard error")
    best = ", ".join(f"{name} {best_probe(accuracy[name])}" for name in columns)
    print(f"best on the last sixth of the training images: {best}")


def in_percent(result: dict[str, float]) -> str:
    """An accuracy with its standard error."""
    return decimals(100 * result["accuracy"], 1, 100 * result["standard_error"])
