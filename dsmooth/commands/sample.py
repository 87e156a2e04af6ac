"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from functools import partial

import torch

from ..distributed import process_group, rank_and_size
from ..fields import check_number
from ..files import printable, suffix_of
from ..pictures import is_diverged, save_grid
from ..pretrained import load
from ..progress import progress
from ..sampling.output import draw_parts, on_cpu, write_adm_npz, write_images
from ..sampling.request import checked_shape
from ..sampling.two_step import draw
from .options import Sample
from .shared import check_outputs, draw_into, drawing_device, request_of, say_drawn


def sample(options: Sample) -> None:
    """Run `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    check_number("count", options.count)
    check_outputs(options.out, options.count, png=options.png, adm=options.adm)
    out, precision = options.out[0], options.execution.precision
    with process_group():
        models = load(*options.models, device=drawing_device(options.execution)).checked()
        request = request_of(models, options.drawing, options.count, options.first_index)
        if not suffix_of(out):
            return draw_into(out, models, request, precision, png=options.png)
        checked_shape(request.count, *models.image_shape)
        started = time.monotonic()
        with progress("drawing", request.count) as done:
            draw_part = partial(draw, models.model, precision=precision)
            parts = request.parts(models.chunk, rank_and_size()[1])
            images = [*draw_parts(draw_part, parts, on_cpu, done)]
    if images:
        x = torch.cat(images)
        for path in options.out:
            if path.suffix == ".png":
                save_grid(x, path)
            elif options.adm:
                write_adm_npz(path, x)
            else:
                write_images(path, x, request, models.classes)
            print(f"wrote {printable(path)}")
        say_drawn(len(x), int(is_diverged(x).sum()), started)
