"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from dataclasses import asdict

from ..data.pictures import is_diverged, save_grid
from ..fields import check_number
from ..files import printable, suffix_of
from ..pretrained import load
from ..progress import progress
from ..sampling.output import draw_all, draw_folder, write_images
from ..sampling.request import checked_shape, precision_on
from .options import Sample
from .shared import check_outputs, drawing_device, request_of, say_drawn


def sample(options: Sample) -> None:
    """Run `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    check_number("count", options.count)
    check_outputs(options.out)
    models = load(*options.models, device=drawing_device(options.execution))
    request = request_of(models, options.drawing, options.count, options.first_index)
    precision = precision_on(models.device, options.execution.precision)
    started = time.monotonic()
    if not suffix_of(options.out[0]):
        settings = {
            **asdict(options.drawing),
            "seed": request.seed,
            "first_index": request.first_index,
            "device": models.device.type,
            "precision": precision,
            "models": models.identity(),
        }
        with progress("drawing", request.count):
            drawn, diverged = draw_folder(
                options.out[0], models.model, request, settings, precision
            )
    else:
        checked_shape(request.count, *models.image_shape)
        with progress("drawing", request.count):
            x = draw_all(models.model, request, precision)
        drawn, diverged = len(x), int(is_diverged(x).sum())
        for path in options.out:
            if path.suffix == ".png":
                save_grid(x, path)
            else:
                write_images(path, x, request, models.classes)
    for path in options.out:
        print(f"wrote {printable(path)}")
    say_drawn(drawn, diverged, started, existing=request.count - drawn)
