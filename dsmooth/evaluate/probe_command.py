"""`dsmooth probe`: a pair from folders, accuracies into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import ProbeSettings
from ..files import write_atomically
from ..machine import default_device, use_threads
from ..models import load_models
from ..report.plots import probe_png
from .probe import BLOCKS, PIXELS, check_data, probe_pair
from .sources import choose_data


def probe(
    folders: Sequence[Path],
    settings: ProbeSettings,
    out: Path,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Probe the pair in `folders`; write probes.json and a PNG per network into `out`.

    data, data_dir: which images; by default those of the run. Raises ValueError for folders that
    are no pair, an `out` with probes of something else, and as `probe_pair` does.
    """
    use_threads(threads)
    pair = load_models(folders).pair
    choice = choose_data(folders, data, data_dir, None)
    train_set, test_set = choice.load("train"), choice.load("test")
    check_data(pair, train_set, test_set)
    out.mkdir(parents=True, exist_ok=True)
    results = probe_pair(
        pair.to(default_device()), train_set, test_set, settings, out / "probes.json"
    )
    for name in ("noisy", "denoiser"):
        write_atomically(
            out / f"{name}.png", probe_png(results["accuracy"], name, transparent=False)
        )
    print_accuracies(results)
    print(f"wrote {out / 'probes.json'} and {out}/*.png")
    return results


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
