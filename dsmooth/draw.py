"""`dsmooth sample`: models from folders, images into files."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._extension import cuda_obstacle, is_available
from .checkpoint import write_atomically
from .images import save_grid
from .nn import PixelCNNpp
from .pair import PairSampler, SmoothedPair, load_run
from .progress import progress
from .runlog import read_run_config
from .sampling.auto import NetworkSampler
from .sampling.draw import Draw
from .sampling.ranks import DrawPart, draw_in_chunks, rank_and_size
from .sampling.shards import SHARD_SIZE, Shards

# The most images that one PNG shows.
GRID_LIMIT = 400
# Images that a process draws at a time: enough to pay for packing the weights and to fill the
# device, few enough for a lively bar.
CHUNK = {"cpu": 256, "cuda": 4096}

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


def sample_to_files(folders: Sequence[Path], draw: Draw, outputs: Sequence[Path]) -> None:
    """Draw images and write each of `outputs`.

    A .png is a grid and a .npz one array, made in memory. A path without a suffix is a folder of
    numbered .npy shards (see `Shards`), which must be the only output: the images go to disk as
    they come, and a stopped call goes on where it was. Under torchrun all processes draw the images
    of one together, and rank 0 writes them. draw.device: see `choose_device`.

    Raises ValueError for outputs of another kind, before any work starts, and as
    `SmoothedPair.sample`, `load_models` and `choose_device` do.
    """
    check_outputs(outputs, draw.count)
    place = choose_device(draw.device or "auto")
    models = load_models(folders)
    networks = networks_of(models)
    for network in networks:
        network.to(place)
    to_shards = not outputs[0].suffix
    chunks = partial(
        draw_in_chunks,
        part_drawer(models),
        draw,
        image_shape=(networks[0].config.image_channels, *image_size_of(models)),
        chunk=CHUNK[place.type],
        within=SHARD_SIZE if to_shards else None,
    )
    if rank_and_size()[0] > 0:
        for _ in chunks():  # its shares; rank 0 has the images
            pass
        return
    started = time.monotonic()
    with progress("drawing", draw.count) as done:
        if to_shards:
            digests = [weights_digest(network) for network in networks]
            description = {**draw.how(), "device": place.type, "weights_sha256": digests}
            shape = (networks[0].config.image_channels, *image_size_of(models))
            shards = Shards(outputs[0], draw, shape, description)
            done(shards.done)
            for _, x in chunks(done=shards.done, progress=done):
                shards.add(x)
        else:
            x = torch.cat([images.cpu() for _, images in chunks(progress=done)])
            write_files(outputs, x, draw)
    for path in outputs:
        print(f"wrote {path}")
    seconds = time.monotonic() - started
    print(f"{draw.count:,} images in {seconds:.1f} s ({draw.count / seconds:.2f} img/s)")


def part_drawer(models: Models) -> DrawPart:
    """Draws parts of one drawing, with the weights packed once."""
    if isinstance(models, SmoothedPair):
        return PairSampler(models).draw
    return NetworkSampler(*models).draw


def choose_device(name: str) -> torch.device:
    """The device that `name` means: "auto", "cpu", "cuda" or "cuda:1".

    "auto" is "cuda" where there is a device and the extension can use it, else "cpu". Under
    torchrun "cuda" is the device of LOCAL_RANK.
    Raises ValueError, with the reason, for a CUDA device that is not there, and for other names.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and cuda_is_built() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ValueError(f'--device must be auto, cpu, cuda or cuda:N, got "{name}"')
    count = torch.cuda.device_count()
    if count == 0:
        built = torch.version.cuda is not None
        reason = "no GPU and driver that it can use" if built else "it was built without CUDA"
        raise ValueError(f"--device {name}: PyTorch finds no CUDA device ({reason})")
    number = int(index) if index else int(os.environ.get("LOCAL_RANK", 0)) % count
    if number >= count:
        raise ValueError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return torch.device("cuda", number)


def cuda_is_built() -> bool:
    """Whether the extension has the CUDA half of the sampler."""
    return is_available() and cuda_obstacle() is None


def networks_of(models: Models) -> list[PixelCNNpp]:
    """The networks, the noisy one first."""
    if isinstance(models, SmoothedPair):
        return [models.noisy, models.denoiser]
    return [models[0]]


def image_size_of(models: Models) -> tuple[int, int]:
    """(H, W) of the images."""
    return models.image_size if isinstance(models, SmoothedPair) else models[1]


def write_files(paths: Sequence[Path], x: Tensor, draw: Draw) -> None:
    """Write x (N, C, H, W) as a grid or an array, as each suffix asks."""
    for path in paths:
        if path.suffix == ".png":
            save_grid(x, path)
        else:
            write_npz(path, x, draw)


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


def weights_digest(model: PixelCNNpp) -> str:
    """SHA-256 of a model's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_npz(path: Path, x: Tensor, draw: Draw) -> None:
    """Write x (N, C, H, W) with its seed and first index as one compressed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        x=x.cpu().numpy(),
        seed=np.uint64(draw.seed),
        first_index=np.int64(draw.first_index),
    )
    write_atomically(path, buffer.getvalue())
