"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.pictures import is_diverged, save_grid
from ..fields import SettingError
from ..files import printable, suffix_of
from ..pretrained import load
from ..progress import progress
from ..sampling.output import draw_all, draw_folder, write_images
from ..sampling.resolve import drawing_device, drawn_seed, resolve
from ..work import once
from .options import Complete, Sample


def sample(options: Sample) -> None:
    """Run `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    check_outputs(options.out)
    is_folder = not suffix_of(options.out[0])
    choices = {**choices_of(options), "first_index": options.first_index}
    models = load(*options.models, device=drawing_device(options.execution.device))
    whole = resolve(models.model, options.count, in_memory=not is_folder, **choices)
    started = time.monotonic()
    if is_folder:
        assert whole.noisy is not None
        settings = {
            **vars(options.drawing),
            "seed": whole.seed,
            "first_index": whole.indices.start,
            "image_size": whole.shape[1:],
            "device": models.device.type,
            "precision": str(whole.noisy.dtype).removeprefix("torch."),
            "models": models.identity(),
        }
        with progress("drawing", options.count):
            drawn, diverged = draw_folder(options.out[0], whole, settings)
    else:
        with progress("drawing", options.count):
            x = draw_all(whole)
        drawn, diverged = len(x), int(is_diverged(x).sum())
        for path in options.out:
            if path.suffix == ".png":
                once(save_grid, x, path)
            else:
                once(write_images, path, x, whole, models.classes)
    for path in options.out:
        print(f"wrote {printable(path)}")
    say_drawn(drawn, diverged, started, existing=options.count - drawn)


def choices_of(options: Sample | Complete) -> dict[str, Any]:
    """The options that both commands hand to `resolve`. All processes have the same seed."""
    choices = {**vars(options.drawing), "precision": options.execution.precision}
    return choices if choices["seed"] is not None else {**choices, "seed": once(drawn_seed)}


def check_outputs(outputs: Sequence[Path], *, folder: bool = True) -> None:
    """Raise ValueError for files of other kinds than images. folder: whether one may be."""
    suffixes = [suffix_of(path) for path in outputs]
    is_folder = folder and suffixes == [""] and outputs != (Path("-"),)
    if not is_folder and not (suffixes and {*suffixes} <= {".png", ".npz"}):
        words = ", or be one folder, without a suffix" * folder
        found = " ".join(map(str, outputs)) or "nothing"
        raise SettingError("out", f"must end in .png or .npz{words}, got {found}")


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
