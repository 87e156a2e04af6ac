"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import process_group, rank_and_size
from ..machine import check_memory, choose_device
from ..models import Models, load_models
from ..pictures import save_grid
from ..progress import progress
from ..sampling.draw import Draw
from ..sampling.shards import SHARD_SIZE, open_shards, write_images
from .options import Sample

# The most images that one PNG shows.
GRID_LIMIT = 400


def sample(options: Sample) -> None:
    """Carry out `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    draw = Draw(
        options.count,
        options.seed,
        options.first_index,
        options.method,
        options.score,
        options.temperature,
        options.threads,
        device=str(choose_device(options.device)),
    )
    check_outputs(options.out, draw.count)
    with process_group():
        sample_to_files(load_models(options.models), draw, options.out)


def sample_to_files(models: Models, draw: Draw, outputs: Sequence[Path]) -> None:
    """Draw images and write each of `outputs`, which `check_outputs` has seen.

    A .png is a grid and a .npz one array, made in memory. A path without a suffix is a folder of
    numbered .npy shards (see `Shards`): the images go to disk as they come, and a stopped call goes
    on where it was. Under torchrun all processes draw the images of one together, and rank 0 writes
    them. Raises ValueError as `Models.draw` and `Shards` do.
    """
    to_shards = any(not path.suffix for path in outputs)
    if not to_shards:
        check_memory((draw.count, *models.image_shape))
    chunks = partial(models.draw, draw, within=SHARD_SIZE if to_shards else None)
    if rank_and_size()[0] > 0:
        for _ in chunks():  # its shares; rank 0 has the images
            pass
        return
    started = time.monotonic()
    with progress("drawing", draw.count) as done:
        if to_shards:
            how = describe(models, draw)
            with open_shards(outputs[0], draw, models.image_shape, how) as shards:
                done(shards.done)
                for _, x in chunks(done=shards.done, progress=done):
                    shards.add(x)
        else:
            parts = []
            for _, x in chunks(progress=done):
                parts.append(x.cpu())
            write_files(outputs, torch.cat(parts), draw)
    for path in outputs:
        print(f"wrote {path}")
    seconds = time.monotonic() - started
    print(f"{draw.count:,} images in {seconds:.1f} s ({draw.count / seconds:.2f} img/s)")


def describe(models: Models, draw: Draw) -> dict[str, Any]:
    """All that decides an image beside its number, as JSON."""
    place = models.device if draw.device is None else torch.device(draw.device)
    return {
        **draw.how(),
        "device": place.type,
        "weights_sha256": list(models.digests().values()),
    }


def write_files(paths: Sequence[Path], x: Tensor, draw: Draw) -> None:
    """Write x (N, C, H, W) as a grid or an array, as each suffix asks."""
    for path in paths:
        if path.suffix == ".png":
            save_grid(x, path)
        else:
            write_images(path, x, draw)


def check_outputs(outputs: Sequence[Path], count: int) -> None:
    """Raise ValueError for files that `sample_to_files` cannot write `count` images to."""
    for path in outputs:
        if not path.suffix and len(outputs) > 1:
            raise ValueError(f"a folder of shards must be the only --out, got {path} among others")
        if path.suffix not in ("", ".png", ".npz"):
            raise ValueError(
                f"--out must end in .png or .npz, or be a folder without a suffix, got {path}"
            )
        if path.suffix == ".png" and count > GRID_LIMIT:
            raise ValueError(f"a .png shows at most {GRID_LIMIT} images, got {count}: use .npz")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {path.absolute().parent} for {path.name}")
