"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from functools import partial

from ..distributed import process_group
from ..fields import check_number
from ..files import printable, suffix_of
from ..pair import draw
from ..pictures import is_diverged, save_grid
from ..pretrained import load_models
from ..progress import progress
from ..sampling.output import gather, write_adm_npz, write_images
from ..sampling.request import checked_shape
from .options import Sample
from .shared import check_outputs, draw_into, prepare, request_of, say_drawn


def sample(options: Sample) -> None:
    """Run `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    check_number("count", options.count)
    check_outputs(options.out, options.count, png=options.png, adm=options.adm)
    folder = None if suffix_of(options.out[0]) else options.out[0]
    with process_group():
        models = load_models(options.models)
        request = request_of(models, options.drawing, options.count, options.first_index)
        prepare(options.execution, models)
        precision = options.execution.precision
        if folder is not None:
            return draw_into(folder, models, request, precision, png=options.png)
        checked_shape(request.count, *models.image_shape)
        started = time.monotonic()
        with progress("drawing", request.count) as done:
            draw_part = partial(draw, models.model, precision=precision)
            x = gather(draw_part, request, models.chunk, done)
    if x is not None:
        for path in options.out:
            if path.suffix == ".png":
                save_grid(x, path)
            elif options.adm:
                write_adm_npz(path, x)
            else:
                write_images(path, x, request, models.classes)
            print(f"wrote {printable(path)}")
        say_drawn(len(x), int(is_diverged(x).sum()), started)
