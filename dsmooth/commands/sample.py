"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data.pictures import is_diverged, save_grid
from ..distributed import from_first
from ..files import check_writable, printable, suffix_of
from ..pretrained import load
from ..progress import progress
from ..sampling.cached import sampler_on
from ..sampling.output import draw_all, draw_folder, drawing_device, write_images
from ..sampling.request import Request, checked_shape, drawn_seed
from ..sampling.two_step import fitted
from .options import Complete, Sample


def sample(options: Sample) -> None:
    """Run `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    check_outputs(options.out)
    request = replace(request_of(options), first_index=options.first_index)
    models = load(*options.models, device=drawing_device(options.execution.device))
    request = fitted(models.model, request)
    precision, _ = sampler_on(models.device, request.precision)
    started = time.monotonic()
    if not suffix_of(options.out[0]):
        settings = {
            **vars(options.drawing),
            "seed": request.seed,
            "first_index": request.first_index,
            "device": models.device.type,
            "precision": precision,
            "models": models.identity(),
        }
        with progress("drawing", request.count):
            drawn, diverged = draw_folder(options.out[0], models.model, request, settings)
    else:
        checked_shape(request.count, *models.image_shape)
        with progress("drawing", request.count):
            x = draw_all(models.model, request)
        drawn, diverged = len(x), int(is_diverged(x).sum())
        for path in options.out:
            if path.suffix == ".png":
                save_grid(x, path)
            else:
                write_images(path, x, request, models.classes)
    for path in options.out:
        print(f"wrote {printable(path)}")
    say_drawn(drawn, diverged, started, existing=request.count - drawn)


def request_of(options: Sample | Complete) -> Request:
    """The request of the options that both commands have."""
    drawing = {**vars(options.drawing)}
    if drawing["seed"] is None:
        drawing["seed"] = from_first(drawn_seed)
    return Request(options.count, precision=options.execution.precision, **drawing)


def check_outputs(outputs: Sequence[Path], *, folder: bool = True) -> None:
    """Raise ValueError for files that images cannot be written to. folder: whether one may be."""
    suffixes = [suffix_of(path) for path in outputs]
    is_folder = folder and suffixes == [""] and outputs != (Path("-"),)
    if not is_folder and not (suffixes and {*suffixes} <= {".png", ".npz"}):
        words = ", or be one folder, without a suffix" * folder
        found = " ".join(map(str, outputs)) or "nothing"
        raise ValueError(f"--out must end in .png or .npz{words}, got {found}")
    for path in outputs:
        check_writable(path)


def say_drawn(drawn: int, diverged: int, started: float, *, existing: int = 0) -> None:
    """Print how many images were drawn, how fast, and how many diverged; ValueError if all did.

    started: when, by time.monotonic(). existing: number of images found in the folder.
    """
    seconds = time.monotonic() - started
    before = f" ({existing:,} already existed)" if existing else ""
    rate = f" ({drawn / seconds:.2f} img/s)" if drawn else ""
    print(f"{drawn:,} image{'s' * (drawn != 1)} in {seconds:.1f} s{rate}{before}")
    line = f"{diverged:,} of {drawn:,} images diverged, which happens with a hardly trained model"
    if diverged and diverged == drawn:
        raise ValueError(f"{line}: train longer")
    if diverged:
        print(f"{line}: they are grey in pictures and not finite in arrays")
