"""Images for evaluations, of files in the forms that others write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import to_bytes
from ..data.dataset import channels_first, warn_of_range
from ..data.folder import SUFFIXES, image_paths, read_pictures
from ..data.reading import guarded, read_npz
from ..files import open_regular
from ..pictures import is_diverged
from ..sampling.output import Shards, check_folder
from .frechet import FeatureStatistics

# Names of an array of images in a .npz: ours, two that are common, and savez's first.
ARRAY_NAMES = ("x", "images", "samples", "arr_0")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, C, H, W), and where they come from.

    kept: (M,) bool, M >= N; False for images that are left out, since NaN and infinite values have
    no bytes.
    """

    images: Tensor
    source: str
    kept: Tensor

    @property
    def diverged(self) -> int:
        """M - N: how many images were left out."""
        return len(self.kept) - len(self.images)


def as_grey(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) of RGB images (N, 3, H, W) with equal channels; others unchanged."""
    first = images[:, :1]
    return first if images.shape[1] == 3 and bool((images == first).all()) else images


def read_images(path: str | Path, limit: int | None = None) -> ImageSet:
    """The first `limit` images (all by default) of a file or folder.

    A .npy or .npz (array x, images, samples or arr_0), a folder of .npy shards as `dsmooth sample`
    writes it, a folder of image files, in any subfolders, or one such file. Arrays are (N, C, H,
    W), (N, H, W, C) or (N, H, W), of bytes or of floating point in [-1, 1]. `dsmooth.data.to_bytes`
    turns the latter into bytes.

    Raises FileNotFoundError or ValueError, naming the file and what it must hold.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = read_npz(path)
        name = next((name for name in ARRAY_NAMES if name in arrays), None)
        if name is None:
            raise ValueError(
                f"{path} must hold an array {', '.join(ARRAY_NAMES)}, got "
                f"{', '.join(arrays) or 'none'}"
            )
        return _collect([arrays[name]], path, limit, ours="first_index" in arrays)
    if path.suffix == ".npy":
        return _collect([_load_npy(path)], path, limit)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return ImageSet(read_pictures(path, [path]), str(path), torch.ones(1, dtype=torch.bool))
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder, image file, .npz or .npy {path}")
    check_folder(path)
    if shards := sorted(path.glob("*.npy")):
        ours = (path / Shards.manifest).exists()
        return _collect(map(_load_npy, shards), path, limit, ours=ours)
    if paths := image_paths(path):
        images = read_pictures(path, paths[:limit])
        kept = torch.ones(len(images), dtype=torch.bool)
        return ImageSet(images, f"{path} ({len(images):,} image files)", kept)
    raise ValueError(f"{path} holds neither a model, nor .npy shards, nor image files")


def read_reference(path: Path) -> Tensor | FeatureStatistics:
    """The real images of a file or folder, or their statistics if a .npz has `mu` and `sigma`.

    Images are bytes (N, C, H, W), grey ones that are kept as RGB with one channel.
    """
    if path.suffix == ".npz" and {"mu", "sigma"} <= read_npz(path).keys():
        return FeatureStatistics.load(path)
    return as_grey(read_images(path).images)


def _load_npy(path: Path) -> NDArray[np.generic]:
    with open_regular(path), guarded(path, "a .npy without pickled objects"):
        return np.lib.format.open_memmap(path, mode="r")


def _collect(
    arrays: Iterable[NDArray[np.generic]], path: Path, limit: int | None, *, ours: bool = False
) -> ImageSet:
    """One set of the first `limit` images in `arrays`, a thousand at a time.

    ours: whether dsmooth drew them, whose range is known.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    count, floating = 0, False
    for array in map(np.atleast_1d, arrays):
        floating |= array.dtype.kind == "f"
        taken = array if limit is None else array[: limit - count]
        for first in range(0, max(1, len(taken)), 1000):
            parts.append(_to_bytes(np.asarray(taken[first : first + 1000]), path))
        count += len(taken)
        if count == limit:
            break
    shapes = {tuple(part.shape[1:]) for part, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"{path} holds images of different shapes: {sorted(shapes)}")
    images, kept = map(torch.cat, zip(*parts, strict=True))
    if not ours and images.numel():
        if floating and 127 < int(images.min()) < int(images.max()):
            raise ValueError(
                f"{path} must hold values in [-1, 1], got none below 0: images in [0, 1] would be "
                "pale; store 2 * x - 1, or bytes as uint8"
            )
        warn_of_range(images, f"the images of {path}")
    return ImageSet(images, f"{path} ({count:,} images)", kept)


def _to_bytes(array: NDArray[np.generic], path: Path) -> tuple[Tensor, Tensor]:
    """Bytes (N, C, H, W) of the images of an array that did not diverge, and which: (M,) bool."""
    is_bytes = array.dtype == np.uint8
    if not is_bytes and array.dtype.kind != "f":
        raise ValueError(f"{path} must hold bytes or floating-point values, got {array.dtype}")
    x = torch.from_numpy(np.array(array, np.uint8 if is_bytes else np.float32))
    x = channels_first(x, str(path))
    if is_bytes:
        return x, torch.ones(len(x), dtype=torch.bool)
    kept = ~is_diverged(x)
    x = x[kept]
    outside = float((x.abs() > 4).float().mean()) if x.numel() else 0.0
    if outside > 0.02:
        raise ValueError(
            f"{path} must hold values in [-1, 1], got {100 * outside:.0f} % beyond 4: store bytes "
            "as uint8"
        )
    return to_bytes(x), kept
