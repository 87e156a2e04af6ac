"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .checkpoint import write_atomically
from .images import save_grid
from .nn import PixelCNNpp
from .pair import Method, Score, SmoothedPair, load_run
from .runlog import read_run_config
from .sampling import sample_images

# The most images that one PNG shows.
GRID_LIMIT = 400


def load_models(folders: Sequence[Path]) -> SmoothedPair | tuple[PixelCNNpp, tuple[int, int]]:
    """A pair from its folder or from two run folders in any order; else one run's model and size.

    Raises FileNotFoundError or ValueError, naming the folder, for anything else.
    """
    if not folders or len(folders) > 2:
        raise ValueError(
            "name a saved pair, or the run folders of a noisy model and of its denoiser, "
            f"got {len(folders)} folders"
        )
    if len(folders) == 2:
        roles = [read_run_config(folder / "config.json")[0].role for folder in folders]
        noisy, denoiser = folders if roles[0] == "noisy" else reversed(folders)
        return SmoothedPair.from_runs(noisy, denoiser)
    (folder,) = folders
    if (folder / "noisy.safetensors").exists():
        return SmoothedPair.from_pretrained(folder)
    model, config, image_size = load_run(folder)
    if config.role == "denoiser":
        raise ValueError(f"{folder} is a denoiser: name the run of its noisy model too")
    return model, image_size


def sample_to_files(
    folders: Sequence[Path],
    count: int,
    outputs: Sequence[Path],
    *,
    seed: int = 0,
    first_index: int = 0,
    method: Method = "two-step",
    score: Score = "full",
    temperature: float = 1.0,
    threads: int | None = None,
) -> None:
    """Draw `count` images and write each of `outputs`: a .png grid or a .npz array.

    Raises ValueError for an output of another kind, before any work starts, and as
    `SmoothedPair.sample` and `load_models` do.
    """
    for path in outputs:
        if path.suffix not in (".png", ".npz"):
            raise ValueError(f"--out must end in .png or .npz, got {path}")
        if path.suffix == ".png" and count > GRID_LIMIT:
            raise ValueError(f"a .png shows at most {GRID_LIMIT} images, got {count}: use .npz")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {path.absolute().parent} for {path.name}")
    started = time.monotonic()
    x = _draw(folders, count, seed, first_index, method, score, temperature, threads)
    seconds = time.monotonic() - started
    for path in outputs:
        if path.suffix == ".png":
            save_grid(x, path)
        else:
            write_npz(path, x, seed, first_index)
        print(f"wrote {path}")
    print(f"{count} images in {seconds:.1f} s ({count / seconds:.2f} img/s)")


def _draw(
    folders: Sequence[Path],
    count: int,
    seed: int,
    first_index: int,
    method: Method,
    score: Score,
    temperature: float,
    threads: int | None,
) -> Tensor:
    models = load_models(folders)
    if isinstance(models, SmoothedPair):
        return models.sample(
            count,
            seed=seed,
            first_index=first_index,
            method=method,
            score=score,
            temperature=temperature,
            threads=threads,
        )
    model, (height, width) = models
    return sample_images(
        model,
        count,
        height=height,
        width=width,
        seed=seed,
        first_index=first_index,
        temperature=temperature,
        threads=threads,
    )


def write_npz(path: Path, x: Tensor, seed: int, first_index: int) -> None:
    """Write x (N, C, H, W) with its seed and first index as one compressed .npz."""
    import io

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, x=x.cpu().numpy(), seed=np.uint64(seed), first_index=np.int64(first_index)
    )
    write_atomically(path, buffer.getvalue())
