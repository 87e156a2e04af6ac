"""The images of a request, drawn by all processes, and into one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..distributed import distributed_map, process_group, rank_and_size
from ..files import write_npz
from ..pictures import is_diverged, nhwc_bytes
from .request import Progress, Request

T = TypeVar("T")


class DrawPart(Protocol):
    """Draws a part of a request, (count, C, H, W)."""

    def __call__(self, request: Request, *, progress: Progress) -> Tensor: ...


def draw_parts(
    draw: DrawPart,
    parts: list[Request],
    keep: Callable[[Request, Tensor], T],
    progress: Progress | None = None,
    done: int = 0,
) -> Iterator[T]:
    """Draw parts on all ranks; rank 0 alone yields keep(part, images) of each, in order.

    progress: called with the number of images so far, `done` before the first.
    """
    size = rank_and_size()[1]
    starts = list(accumulate((part.count for part in parts), initial=done))

    def work(number: int) -> T:
        # The other processes draw the parts behind this one meanwhile.
        first, last = starts[number], starts[min(number + size, len(parts))]

        def report(fraction: float) -> None:
            if progress is not None:
                progress(first + fraction * (last - first))

        images = draw(parts[number], progress=report)
        report(1.0)
        return keep(parts[number], images)

    with process_group():
        yield from distributed_map(range(len(parts)), work, to_all=False)


def gather(
    draw: DrawPart, request: Request, chunk: int, progress: Progress | None = None
) -> Tensor | None:
    """The images of a request on the CPU, None at other ranks than 0; `chunk` at a time at most."""
    chunk = min(chunk, -(-request.count // rank_and_size()[1]))
    parts = list(draw_parts(draw, request.parts(chunk), lambda _, x: x.cpu(), progress))
    return torch.cat(parts) if parts else None


def write_images(path: Path, x: Tensor, request: Request, *, n_classes: int = 0) -> None:
    """Write the images x (N, C, H, W) of a request as one compressed .npz, with seed and labels.

    n_classes: of the models, whose labels are kept as `label`.
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(request.seed),
        "first_index": np.int64(request.first_index),
    }
    labels = request.labels(n_classes)
    if labels is not None:
        arrays["label"] = labels.numpy(force=True)
    write_npz(path, arrays)


def write_adm_npz(path: Path, x: Tensor) -> None:
    """Write the finite images of x (N, C, H, W) as uint8 RGB, the form that ADM
    (guided-diffusion) reads."""
    pixels = nhwc_bytes(x[~is_diverged(x)])
    write_npz(path, {"arr_0": pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels})
