"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_atomically
from .images import save_grid
from .nn import PixelCNNpp
from .pair import Method, Score, SmoothedPair, load_run
from .progress import progress
from .runlog import read_run_config
from .sampling import sample_images
from .sampling.shards import draw_to_shards

# The most images that one PNG shows.
GRID_LIMIT = 400
# Images drawn at a time: enough to pay for packing the weights, few enough for a lively bar.
CHUNK = 256

Models = SmoothedPair | tuple[PixelCNNpp, tuple[int, int]]


def load_models(folders: Sequence[Path]) -> Models:
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
    """Draw `count` images and write each of `outputs`.

    A .png is a grid and a .npz one array, made in memory. A path without a suffix is a folder of
    numbered .npy shards (see `draw_to_shards`), which must be the only output: the images go to
    disk as they come, and a stopped call goes on where it was.

    Raises ValueError for outputs of another kind, before any work starts, and as
    `SmoothedPair.sample` and `load_models` do.
    """
    check_outputs(outputs, count)
    models = load_models(folders)
    settings: dict[str, Any] = {
        "seed": seed,
        "method": method,
        "score": score,
        "temperature": temperature,
    }

    def draw(first: int, n: int) -> Tensor:
        if isinstance(models, SmoothedPair):
            return models.sample(n, first_index=first, threads=threads, **settings)
        model, (height, width) = models
        return sample_images(
            model,
            n,
            height=height,
            width=width,
            seed=seed,
            first_index=first,
            temperature=temperature,
            threads=threads,
        )

    started = time.monotonic()
    if len(outputs) == 1 and not outputs[0].suffix:
        _draw_shards(draw, models, count, outputs[0], first_index, settings)
    else:
        with progress("drawing", count) as done:
            chunks = []
            for first in range(0, count, CHUNK):
                chunks.append(draw(first_index + first, min(CHUNK, count - first)))
                done(first + len(chunks[-1]))
        x = torch.cat(chunks)
        for path in outputs:
            if path.suffix == ".png":
                save_grid(x, path)
            else:
                write_npz(path, x, seed, first_index)
    for path in outputs:
        print(f"wrote {path}")
    seconds = time.monotonic() - started
    print(f"{count:,} images in {seconds:.1f} s ({count / seconds:.2f} img/s)")


def check_outputs(outputs: Sequence[Path], count: int) -> None:
    """Raise ValueError for a count or files that `sample_to_files` cannot write."""
    if count < 1:
        raise ValueError(f"the number of images must be at least 1, got {count}")
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


def _draw_shards(
    draw: Callable[[int, int], Tensor],
    models: Models,
    count: int,
    folder: Path,
    first_index: int,
    settings: Mapping[str, Any],
) -> None:
    if isinstance(models, SmoothedPair):
        channels, size = models.noisy.config.image_channels, models.image_size
        networks = [models.noisy, models.denoiser]
    else:
        channels, size = models[0].config.image_channels, models[1]
        networks = [models[0]]
    description = {**settings, "weights_sha256": [weights_digest(network) for network in networks]}
    with progress("drawing", count) as done:
        draw_to_shards(
            draw,
            count,
            folder,
            image_shape=(channels, *size),
            first_index=first_index,
            description=description,
            chunk=CHUNK,
            progress=done,
        )


def weights_digest(model: PixelCNNpp) -> str:
    """SHA-256 of a model's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_npz(path: Path, x: Tensor, seed: int, first_index: int) -> None:
    """Write x (N, C, H, W) with its seed and first index as one compressed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, x=x.cpu().numpy(), seed=np.uint64(seed), first_index=np.int64(first_index)
    )
    write_atomically(path, buffer.getvalue())
