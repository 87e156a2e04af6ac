"""Images of files in the forms that other programs write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fields import SettingError
from ..files import guarded, open_regular, read_npz
from ..progress import LOG
from .dataset import channels_first, other_range, pixels_of, to_bytes
from .folder import image_paths, read_pictures
from .order import epoch_order
from .pictures import is_diverged

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


def read_images(path: str | Path, limit: int | None = None, *, at_random: bool = False) -> ImageSet:
    """The first `limit` images (all by default) of a file or folder.

    at_random: the first in a fixed random order instead, since files are often sorted by class.

    A .npy or .npz (array x, images, samples or arr_0), a folder of image files, in any subfolders,
    or one such file. Arrays are (N, C, H, W), (N, H, W, C) or (N, H, W), of bytes or of floating
    point in [-1, 1], which `dsmooth.data.to_bytes` turns into bytes; another range is refused,
    unless dsmooth drew them.

    Raises FileNotFoundError or ValueError, naming the file and what it must hold.
    """
    path, arrays = Path(path), dict[str, NDArray[np.generic]]()

    def chosen(count: int) -> list[int]:
        order = epoch_order(count, 0, 0) if at_random and count else torch.arange(count)
        return order[:limit].sort().values.tolist()

    if path.suffix == ".npz":
        arrays = read_npz(path)
        name = next((name for name in ARRAY_NAMES if name in arrays), None)
        if name is None:
            names, found = ", ".join(ARRAY_NAMES), ", ".join(arrays) or "none"
            raise ValueError(f"{path} must hold an array {names}, got {found}")
        array = arrays[name]
    elif path.suffix == ".npy":
        with open_regular(path), guarded(path, "a .npy without pickled objects"):
            array = np.lib.format.open_memmap(path, mode="r")
    else:
        paths = [path] if path.is_file() else image_paths(path)
        images = read_pictures([paths[i] for i in chosen(len(paths))])
        return ImageSet(images, f"{path} ({len(images):,} image files)")
    array = np.atleast_1d(array)
    return _from_array(array, chosen(len(array)), path, drawn=not OWN_ARRAYS.isdisjoint(arrays))


def _from_array(
    array: NDArray[np.generic], rows: list[int], path: Path, *, drawn: bool
) -> ImageSet:
    """The images `rows` of an array, a thousand at a time; drawn: by dsmooth, so in [-1, 1]."""
    is_bytes, parts = array.dtype == np.uint8, list[Tensor]()
    low, high, beyond = np.inf, -np.inf, 0
    for first in range(0, max(1, len(rows)), 1000):
        x = channels_first(pixels_of(array[rows[first : first + 1000]], str(path)), str(path))
        if not is_bytes:
            x = x[~is_diverged(x)]
            if x.numel():
                low, high = min(low, float(x.min())), max(high, float(x.max()))
            beyond += int((x.abs() > BEYOND_END).sum())
        parts.append(x if is_bytes else to_bytes(x))
    images = torch.cat(parts)
    if not drawn and images.numel():
        share = beyond / images.numel()
        if not is_bytes and (low > -NEAR_END or high < NEAR_END or share > MOST_BEYOND):
            raise ValueError(
                f"{path} must hold values in [-1, 1], black -1 and white 1, got {low:.3g} .. "
                f"{high:.3g}, {100 * share:.0f} % of them beyond {BEYOND_END}: scale them, 2 * x - "
                "1 if they are in [0, 1], or store bytes as uint8"
            )
        if words := other_range(images, f"the images of {path}"):
            LOG.warning("%s", words)
    return ImageSet(images, f"{path} ({len(rows):,} images)", len(rows) - len(images))


def read_mask(path: Path) -> Tensor:
    """The mask (1, H, W) bool of a picture of two values, the larger of which means known."""
    levels = read_pictures([path]).float().mean(1)
    values = levels.unique().tolist()
    if len(values) > 2:
        raise SettingError(
            "mask",
            "must have two values, black where pixels are missing and white where they are given, "
            f"but {path} has {len(values)}",
        )
    return levels == values[-1] if len(values) == 2 else levels > 0
