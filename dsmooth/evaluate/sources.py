"""Images for evaluations, of files in the forms that others write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import to_bytes
from ..data.dataset import channels_first, other_range
from ..data.folder import SUFFIXES, image_paths, read_pictures
from ..data.order import epoch_order
from ..data.pictures import is_diverged
from ..data.reading import guarded, read_npz
from ..files import open_regular
from ..progress import LOG
from .frechet import FeatureStatistics

# Names of an array of images in a .npz: dsmooth's, two that are common, and savez's first.
ARRAY_NAMES = ("x", "images", "samples", "arr_0")
# Arrays that only the files of `dsmooth sample` and `dsmooth complete` have.
OWN_ARRAYS = {"first_index", "original"}
# Images of values in [-1, 1] have some near both ends, and few beyond them.
NEAR_END, BEYOND_END, MOST_BEYOND = 0.75, 1.1, 0.02


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, C, H, W), and where they come from.

    diverged: number of images that are left out, since NaN and infinite values have no bytes.
    """

    images: Tensor
    source: str
    diverged: int = 0


def as_grey(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) of RGB images (N, 3, H, W) with equal channels; others unchanged."""
    first = images[:, :1]
    return first if images.shape[1] == 3 and bool((images == first).all()) else images


def read_images(path: str | Path, limit: int | None = None, *, at_random: bool = False) -> ImageSet:
    """The first `limit` images (all by default) of a file or folder.

    at_random: the first in a fixed random order instead, since files are often sorted by class.

    A .npy or .npz (array x, images, samples or arr_0), a folder of image files, in any subfolders,
    or one such file. Arrays are (N, C, H, W), (N, H, W, C) or (N, H, W), of bytes or of floating
    point in [-1, 1], which `dsmooth.data.to_bytes` turns into bytes; another range is refused,
    unless dsmooth drew them.

    Raises FileNotFoundError or ValueError, naming the file and what it must hold.
    """
    path = Path(path)

    def chosen(count: int) -> list[int]:
        order = epoch_order(count, 0, 0) if at_random and count else torch.arange(count)
        return order[:limit].sort().values.tolist()

    if path.suffix == ".npz":
        arrays = read_npz(path)
        name = next((name for name in ARRAY_NAMES if name in arrays), None)
        if name is None:
            raise ValueError(
                f"{path} must hold an array {', '.join(ARRAY_NAMES)}, got "
                f"{', '.join(arrays) or 'none'}"
            )
        array = np.atleast_1d(arrays[name])
        return _from_array(array, chosen(len(array)), path, drawn=not OWN_ARRAYS.isdisjoint(arrays))
    if path.suffix == ".npy":
        with open_regular(path), guarded(path, "a .npy without pickled objects"):
            array = np.atleast_1d(np.lib.format.open_memmap(path, mode="r"))
        return _from_array(array, chosen(len(array)), path)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return ImageSet(read_pictures(path, [path]), str(path))
    if paths := image_paths(path):
        images = read_pictures(path, [paths[i] for i in chosen(len(paths))])
        return ImageSet(images, f"{path} ({len(images):,} image files)")
    raise ValueError(f"there are no image files in {path}, and it is no .npz or .npy")


def read_reference(path: Path) -> Tensor | FeatureStatistics:
    """The real images of a file or folder, or their statistics if a .npz has `mu` and `sigma`.

    Images are bytes (N, C, H, W), grey ones that are kept as RGB with one channel.
    """
    if path.suffix == ".npz" and {"mu", "sigma"} <= read_npz(path).keys():
        return FeatureStatistics.load(path)
    return as_grey(read_images(path).images)


def _from_array(
    array: NDArray[np.generic], rows: list[int], path: Path, *, drawn: bool = False
) -> ImageSet:
    """The images `rows` of an array, a thousand at a time; drawn: by dsmooth, so in [-1, 1]."""
    is_bytes = array.dtype == np.uint8
    parts: list[Tensor] = []
    low, high, beyond, kept = np.inf, -np.inf, 0, 0
    for first in range(0, max(1, len(rows)), 1000):
        pixels = array[rows[first : first + 1000]]
        x = torch.from_numpy(np.array(pixels, np.uint8 if is_bytes else np.float32))
        x = channels_first(x, str(path))
        if not is_bytes:
            x = x[~is_diverged(x)]
            if x.numel():
                low, high = min(low, float(x.min())), max(high, float(x.max()))
            beyond += int((x.abs() > BEYOND_END).sum())
        kept += len(x)
        parts.append(x if is_bytes else to_bytes(x))
    images = torch.cat(parts)
    if not drawn and images.numel():
        if not is_bytes:
            check_range(path, low, high, beyond / images.numel())
        if words := other_range(images, f"the images of {path}"):
            LOG.warning("%s", words)
    return ImageSet(images, f"{path} ({len(rows):,} images)", len(rows) - kept)


def check_range(path: Path, low: float, high: float, beyond: float) -> None:
    """Raise ValueError for values low .. high that are not those of images in [-1, 1].

    beyond: the share of values beyond -1.1 .. 1.1.
    """
    if 0 <= low < high <= 1:
        raise ValueError(
            f"{path} must hold values in [-1, 1], got none below 0: images in [0, 1] would be "
            "pale; store 2 * x - 1, or bytes as uint8"
        )
    if low > -NEAR_END or high < NEAR_END or beyond > MOST_BEYOND:
        raise ValueError(
            f"{path} must hold values in [-1, 1], black -1 and white 1, got {low:.3g} .. "
            f"{high:.3g}, {100 * beyond:.0f} % of them beyond {BEYOND_END}: scale them, or store "
            "bytes as uint8"
        )
