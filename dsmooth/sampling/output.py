"""The images of a draw, drawn in parts: in memory, in a .npz, or in a folder of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Classes
from ..data.pictures import BORDER, is_diverged, pil_images, png, save_grid
from ..files import write_atomically, write_npz
from ..pixels import value_of
from ..progress import advance_to, portion
from ..work import Record, batches, fair_size, map_parts, once, own_folder, runs
from .cached import PackedNetwork
from .draw import Draw
from .two_step import draw

# Images drawn at a time: enough to fill the device, few enough to lie in memory.
CHUNK = {"cpu": 256, "cuda": 4096}
# The record of a folder: all that decides its images, except their number.
RECORD = "images.json"


def draw_all(whole: Draw) -> Tensor:
    """The images (n, C, H, W) of a draw, on the CPU."""

    def drawn(part: range) -> Tensor:
        return draw(whole.part(part)).cpu()

    n = len(whole.indices)
    parts = batches(n, _chunk(whole, n))
    return torch.cat([*map_parts(drawn, parts, in_threads=False)])


def write_images(path: Path, x: Tensor, whole: Draw, classes: Classes | None) -> None:
    """Write images x (N, C, H, W) of a draw as a compressed .npz, with seed and labels.

    classes: of the models; the labels are stored as `label`, with the names of the classes.
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(whole.seed),
        "first_index": np.int64(whole.indices.start),
    }
    if classes is not None and whole.labels is not None:
        arrays["label"] = whole.labels.numpy(force=True)
        arrays["class_names"] = np.array(classes.names)
    write_npz(path, arrays)


def write_completions(path: Path, x: Tensor, mask: Tensor, completed: Tensor, seed: int) -> None:
    """Write originals x (N, C, H, W) and their completions (N * draws, C, H, W) to `path`.

    mask: (1, H, W) bool, the known pixels. As a picture, each row is the original, the given part
    and the draws.
    """
    if path.suffix == ".npz":
        arrays = {"x": completed, "original": x, "mask": mask}
        named = {name: tensor.numpy(force=True) for name, tensor in arrays.items()}
        write_npz(path, {**named, "seed": np.uint64(seed)})
        return
    given = torch.where(mask[:, None], x, value_of(BORDER))
    rows = torch.cat([x[:, None], given[:, None], completed.unflatten(0, (len(x), -1))], dim=1)
    save_grid(rows.flatten(0, 1), path, columns=rows.shape[1])


def draw_folder(folder: Path, whole: Draw, description: Mapping[str, object]) -> tuple[int, int]:
    """Draw the images that a folder lacks, each a PNG: 00000000.png is image 0, 8 bits per channel.

    description: all that decides the images except their number, as JSON; ValueError for a folder
    of another one, or with other files. A file is written whole or not at all, so a stopped call
    can be repeated, also with more images. Diverged images are grey. Returns how many images were
    drawn, and how many of them diverged.
    """

    def file(number: int) -> Path:
        return folder / f"{whole.indices[number]:08d}.png"

    def drawn(part: range) -> list[tuple[bytes, bool]]:
        x = draw(whole.part(part))
        return [*zip(map(png, pil_images(x)), is_diverged(x).tolist(), strict=True)]

    def write(part: range, contents: list[tuple[bytes, bool]]) -> None:
        for number, (picture, _) in zip(part, contents, strict=True):
            write_atomically(file(number), picture)

    diverged = 0
    with own_folder(folder, "another process that draws into it"):
        Record(folder / RECORD, description, type(None)).begin(folder)
        numbers = range(len(whole.indices))
        missing = once(lambda: [number for number in numbers if not file(number).exists()])
        parts = runs(missing, _chunk(whole, len(missing)))
        advance_to(1 - len(missing) / len(numbers))
        with portion(len(missing) / len(numbers)):
            pictures = map_parts(drawn, parts, in_threads=False)
            for part, contents in zip(parts, pictures, strict=True):
                once(write, part, contents)
                diverged += sum(is_grey for _, is_grey in contents)
    return len(missing), diverged


def _chunk(whole: Draw, n: int) -> int:
    """How many of n images are drawn at a time."""
    drawer = whole.noisy or whole.denoiser
    is_fast = isinstance(drawer, PackedNetwork) and drawer.device.type == "cuda"
    return fair_size(n, CHUNK["cuda" if is_fast else "cpu"])
