"""`dsmooth probe`: a pair from folders, accuracies into a folder."""

from __future__ import annotations

from ..data import SPLITS
from ..evaluate.probe import PIXELS, best_probe, probe_pair
from ..files import printable, write_atomically
from ..machine import choose_device
from ..pretrained import images_for, load
from ..progress import progress
from ..report.plots import probe_png
from ..results import ProbeResult
from ..text import Table, percent
from ..work import once
from .options import Probe


def probe(options: Probe) -> None:
    """Run `dsmooth probe`: probes.json and a PNG per network."""
    (path, *pictures), execution = options.outputs, options.execution
    models = load(*options.models, device=choose_device(execution.device))
    pair, plain = models.pair, models.plain
    train, test = images_for(models, SPLITS, **vars(options.dataset))
    with progress("probes", 4 if plain is None else 5, "networks"):
        result = probe_pair(
            pair, train, test, options.settings, path, plain=plain, precision=execution.precision
        )
    for name, picture in zip(("noisy", "denoiser"), pictures, strict=True):
        once(write_atomically, picture, probe_png(result.accuracy, name))
    print_probes(result)
    print(f"wrote {printable(path)} and {printable(options.out)}/*.png")


def print_probes(result: ProbeResult) -> None:
    """Print the accuracy after each block of each network."""
    accuracy, count = result.accuracy, result.settings.test_images
    networks = [name for name in accuracy if name != PIXELS]
    rows = []
    for block in accuracy["noisy"]:
        scores = (accuracy[name][block] for name in networks)
        rows.append([block, *(percent(score.accuracy, error=score.error) for score in scores)])
    Table(["after block", *networks], rows, f"test accuracy, {count:,} images").show()
    pixels = accuracy[PIXELS][PIXELS]
    print(f"pixels: {percent(pixels.accuracy, error=pixels.error)}; ± is the standard error")
    best = ", ".join(f"{name} {best_probe(accuracy[name])}" for name in networks)
    print(f"best on the last sixth of the training images: {best}")
