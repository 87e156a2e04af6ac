"""Images on disk in the forms that others read: one .npz, or a PNG file for each image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import lock_folder, read_json, write_atomically, write_json, write_npz
from ..pictures import is_diverged, nhwc_bytes, png
from .request import Request
from .shards import check_drawing

PNG_MANIFEST = "images.json"


def write_images(
    path: Path,
    x: Tensor,
    draw: Request,
    asked: Mapping[str, Any] | None = None,
    *,
    n_classes: int = 0,
) -> None:
    """Write the images x (N, C, H, W) of a draw as one compressed .npz: x, seed, first_index.

    asked: what decides the images, kept beside them as JSON in "asked". n_classes: of the models,
    whose labels are then kept as `label`.
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(draw.seed),
        "first_index": np.int64(draw.first_index),
    }
    labels = draw.labels(n_classes)
    if labels is not None:
        arrays["label"] = labels.numpy(force=True)
    write_npz(path, arrays if asked is None else {**arrays, "asked": np.array(json.dumps(asked))})


def write_adm_npz(path: Path, x: Tensor) -> None:
    """Write images x (N, C, H, W) as evaluators in the manner of ADM (guided-diffusion) read them.

    The .npz holds arr_0, uint8 (N, H, W, 3); grey images are repeated to RGB, for such evaluators
    have an Inception network. Raises ValueError for an image with infinite values.
    """
    check_finite(x)
    pixels = nhwc_bytes(x)
    write_npz(path, {"arr_0": pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels})


def check_finite(x: Tensor) -> None:
    """Raise ValueError if an image of x (N, C, H, W) has no bytes."""
    count = int(is_diverged(x).sum())
    if count:
        raise ValueError(
            f"{count:,} of {len(x):,} images diverged to infinity, as those of a hardly trained "
            "model can, and have no bytes: leave out --png and --adm, or train longer"
        )


@contextmanager
def open_pngs(
    folder: Path, draw: Request, image_shape: tuple[int, int, int], description: Mapping[str, Any]
) -> Iterator[NumberedPngs]:
    """`NumberedPngs` that no other process writes meanwhile. Raises ValueError if one does."""
    with lock_folder(folder, "another process that draws into it"):
        yield NumberedPngs(folder, draw, image_shape, description)


class NumberedPngs:
    """A folder that takes the images of a draw in order, each as one PNG file of 8 bits a channel.

    A file is named after the image's number in the stream: 00000000.png is that of first_index 0.
    `done` says how many of the draw are there. So a stopped call goes on, and a larger one adds the
    rest. description: what decides the images beside their numbers, as of `Shards`.
    Raises ValueError for a folder that holds another drawing.
    """

    def __init__(
        self,
        folder: Path,
        draw: Request,
        image_shape: tuple[int, int, int],
        description: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.draw = draw
        drawing = {
            "description": dict(description),
            "first_index": draw.first_index,
            "image_shape": list(image_shape),
        }
        manifest = folder / PNG_MANIFEST
        if manifest.exists():
            check_drawing(folder, read_json(manifest), drawing)
        elif any(folder.glob("*.png")):
            raise ValueError(f"{folder} holds pictures without {PNG_MANIFEST}: choose another")
        else:
            write_json(manifest, drawing)
        self.done = 0
        while self.done < draw.count and self._path(self.done).exists():
            self.done += 1

    def add(self, images: Tensor) -> None:
        """Write the next images (N, C, H, W)."""
        check_finite(images)
        for pixels in nhwc_bytes(images):
            write_atomically(self._path(self.done), png(pixels))
            self.done += 1

    def _path(self, offset: int) -> Path:
        return self.folder / f"{self.draw.first_index + offset:08d}.png"
