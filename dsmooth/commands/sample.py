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
from ..sampling.cached import Sampler
from ..sampling.image_files import open_pngs, write_adm_npz, write_images
from ..sampling.request import How, Request, chosen_seed
from ..sampling.shards import SHARD_SIZE, open_shards
from .options import Class, Sample

# The most images that one PNG shows.
GRID_LIMIT = 400


def sample(options: Sample) -> None:
    """Carry out `dsmooth sample`. Raises ValueError or FileNotFoundError before any work."""
    request = Request(
        options.count,
        seed_of_all(options.seed),
        options.first_index,
        options.method,
        options.score,
        options.temperature,
        label=options.label,
        levels=options.levels,
    )
    sampler = Sampler(How(options.threads, options.precision))
    check_outputs(options.out, options.count, png=options.png, adm=options.adm)
    device = choose_device(options.device)
    with process_group():
        models = load_models(options.models).to(device)
        check_label(models, options.label)
        sample_to_files(models, request, sampler, options.out, png=options.png, adm=options.adm)


def check_label(models: Models, label: Class | None) -> None:
    """Raise ValueError for a --label that is missing, or that these models do not take."""
    n_classes = models.n_classes
    if n_classes == 0 and label is not None:
        raise ValueError("--label is for models with classes, which these have not")
    if n_classes and (label is None or (label != "each" and not 0 <= label < n_classes)):
        raise ValueError(
            f"the model has {n_classes} classes: give --label 0 .. {n_classes - 1}, or --label "
            f"each, got {label}"
        )


def seed_of_all(seed: int | None) -> int:
    """`chosen_seed`. Raises ValueError where several processes would each choose their own."""
    if seed is None and rank_and_size()[1] > 1:
        raise ValueError("--seed None is for one process: give all of them the same number")
    return chosen_seed(seed)


def sample_to_files(
    models: Models,
    draw: Request,
    sampler: Sampler,
    outputs: Sequence[Path],
    *,
    png: bool = False,
    adm: bool = False,
) -> None:
    """Draw images and write each of `outputs`, which `check_outputs` has seen.

    A .png is a grid and a .npz one array, made in memory; with `adm` in the layout of
    `write_adm_npz`. A path without a suffix is a folder of numbered .npy shards (see `Shards`), or
    with `png` of a PNG file an image (see `NumberedPngs`): the images go to disk as they come, and
    a stopped call goes on where it was. Under torchrun all processes draw the images of one
    together, and rank 0 writes them. Raises ValueError as `Models.draw` and these folders do.
    """
    to_folder = any(not path.suffix for path in outputs)
    if not to_folder:
        check_memory((draw.count, *models.image_shape))
    chunks = partial(models.draw, draw, sampler, within=SHARD_SIZE if to_folder else None)
    if rank_and_size()[0] > 0:
        for _ in chunks():  # its shares; rank 0 has the images
            pass
        return
    started, there = time.monotonic(), 0
    with progress("drawing", draw.count) as done:
        if to_folder:
            how = describe(models, draw, sampler)
            opened = open_pngs if png else open_shards
            with opened(outputs[0], draw, models.image_shape, how) as folder:
                there = folder.done
                done(there)
                for _, x in chunks(done=there, progress=done):
                    folder.add(x)
        else:
            parts = []
            for _, x in chunks(progress=done):
                parts.append(x.cpu())
            write_files(outputs, torch.cat(parts), draw, adm, models.n_classes)
    for path in outputs:
        print(f"wrote {path}" if there < draw.count else f"nothing to draw: {path} has them all")
    print(rate_line(draw.count - there, there, time.monotonic() - started))


def rate_line(drawn: int, there: int, seconds: float) -> str:
    """How many images this call drew, and how fast; those that were there already do not count."""
    before = f", beside {there:,} that were there" if there else ""
    rate = f" ({drawn / seconds:.2f} img/s)" if drawn else ""
    return f"{drawn:,} image{'s' * (drawn != 1)} in {seconds:.1f} s{rate}{before}"


def describe(models: Models, draw: Request, sampler: Sampler) -> dict[str, Any]:
    """All that decides an image beside its number, as JSON."""
    return {
        **draw.how(),
        "device": models.device.type,
        "precision": sampler.how.precision_on(models.device),
        "weights_sha256": list(models.digests().values()),
    }


def write_files(
    paths: Sequence[Path], x: Tensor, draw: Request, adm: bool, n_classes: int = 0
) -> None:
    """Write x (N, C, H, W) as a grid or an array, as each suffix asks."""
    for path in paths:
        if path.suffix == ".png":
            save_grid(x, path)
        elif adm:
            write_adm_npz(path, x)
        else:
            write_images(path, x, draw, n_classes=n_classes)


def check_outputs(
    outputs: Sequence[Path], count: int, *, png: bool = False, adm: bool = False
) -> None:
    """Raise ValueError for files that `sample_to_files` cannot write `count` images to."""
    if png and all(path.suffix for path in outputs):
        raise ValueError("--png is for a folder: give --out a path without a suffix")
    if adm and not any(path.suffix == ".npz" for path in outputs):
        raise ValueError("--adm is for a .npz: give --out one")
    for path in outputs:
        if not path.suffix and len(outputs) > 1:
            raise ValueError(f"a folder must be the only --out, got {path} among others")
        if path.suffix not in ("", ".png", ".npz"):
            raise ValueError(
                f"--out must end in .png or .npz, or be a folder without a suffix, got {path}"
            )
        if path.suffix == ".png" and count > GRID_LIMIT:
            raise ValueError(
                f"a .png shows at most {GRID_LIMIT} images, got {count}: use .npz, or a folder "
                "with --png for a picture an image"
            )
        if not path.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {path.absolute().parent} for {path.name}")
