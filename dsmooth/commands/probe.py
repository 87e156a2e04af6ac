"""`dsmooth probe`: a pair from folders, accuracies into a folder."""

from __future__ import annotations

from typing import Any

from ..distributed import process_group, rank_and_size
from ..evaluate.probe import BLOCKS, PIXELS, check_data, probe_pair
from ..evaluate.sources import choose_data
from ..files import write_atomically
from ..machine import default_device, use_threads
from ..models import load_models
from ..report.plots import probe_png
from .options import Probe


def probe(options: Probe) -> None:
    """Carry out `dsmooth probe`: probes.json and a PNG per network.

    Raises ValueError for folders that are no pair, an `out` with probes of something else, and as
    `probe_pair` does.
    """
    with process_group():
        _probe(options)


def _probe(options: Probe) -> None:
    use_threads(options.threads)
    models = load_models(options.models)
    pair = models.pair
    choice = choose_data(models, options.data, options.data_dir)
    train_set, test_set = choice.load("train"), choice.load("test")
    check_data(pair, train_set, test_set)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    results = probe_pair(
        pair.to(default_device()), train_set, test_set, options.settings, out / "probes.json"
    )
    if rank_and_size()[0] > 0:
        return
    for name in ("noisy", "denoiser"):
        write_atomically(
            out / f"{name}.png", probe_png(results["accuracy"], name, transparent=False)
        )
    print_accuracies(results)
    print(f"wrote {out / 'probes.json'} and {out}/*.png")


def print_accuracies(results: dict[str, Any]) -> None:
    """A table with a column per network and a row per block."""
    from rich.console import Console
    from rich.table import Table

    asked, accuracy = results["asked"], results["accuracy"]
    columns = [name for name in accuracy if name != PIXELS]
    table = Table(title=f"test accuracy in %, {asked['test_images']:,} images")
    table.add_column("after block")
    for name in columns:
        table.add_column(name, justify="right")
    for block in BLOCKS:
        table.add_row(block, *(percent(accuracy[name][block]) for name in columns))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"pixels: {percent(accuracy[PIXELS][PIXELS])}; ± is the standard error")


def percent(score: dict[str, float]) -> str:
    """An accuracy with its standard error."""
    return f"{100 * score['accuracy']:.1f} ± {100 * score['standard_error']:.1f}"
