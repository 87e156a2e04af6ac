"""Images for evaluations, of files in the forms that others write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import to_bytes
from ..data.dataset import channels_first, warn_of_range
from ..data.folder import SUFFIXES, image_paths, read_pictures
from ..data.order import epoch_order
from ..data.reading import guarded, read_npz
from ..errors import SettingError
from ..files import open_regular
from ..pictures import is_diverged
from ..record import read_parts
from ..sampling.output import Pictures, Shards, check_folder
from .frechet import FeatureStatistics

# Names of an array of images in a .npz: dsmooth's, two that are common, and savez's first.
ARRAY_NAMES = ("x", "images", "samples", "arr_0")
# Names of an array of labels: dsmooth's, two that are common, and the one of guided-diffusion.
LABEL_NAMES = ("label", "labels", "y", "arr_1")
# Arrays that only the files of `dsmooth sample` and `dsmooth complete` have.
OWN_ARRAYS = {"first_index", "original"}
# Images of values in [-1, 1] have some near both ends, and few beyond them.
NEAR_END, BEYOND_END, MOST_BEYOND = 0.75, 1.1, 0.02


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, C, H, W), and where they come from.

    kept: (M,) bool, M >= N; False for images that are left out, since NaN and infinite values have
    no bytes. labels: (M,) int64, None where the file has none. drawn_with: the label of a folder
    that dsmooth drew, as its record has it. class_names: of the models that drew them, if known.
    """

    images: Tensor
    source: str
    kept: Tensor
    labels: Tensor | None = None
    drawn_with: str | int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def diverged(self) -> int:
        """M - N: how many images were left out."""
        return len(self.kept) - len(self.images)

    def of_class(self, number: int) -> ImageSet:
        """The images with that label; all of them where there are no labels or no others.

        Raises SettingError where fewer than two have it, or images were drawn with another label.
        """
        if self.drawn_with not in (None, number):
            raise SettingError(
                "label",
                f"{number} is not the label of {self.source}, which was drawn with label "
                f"{self.drawn_with}: draw that class into a folder of its own, or into a .npz, "
                "which has labels",
            )
        if self.labels is None or bool((self.labels == number).all()):
            return self
        chosen = self.labels == number
        count = int(chosen.sum())
        if count < 2:
            held = ", ".join(map(str, self.labels.unique().tolist()))
            raise SettingError(
                "label", f"{number} is of {count} images of {self.source}, whose labels are {held}"
            )
        images, source = self.images[chosen[self.kept]], f"{count:,} of {self.source}"
        kept, labels = self.kept[chosen], self.labels[chosen]
        return replace(self, images=images, source=source, kept=kept, labels=labels)


def as_grey(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) of RGB images (N, 3, H, W) with equal channels; others unchanged."""
    first = images[:, :1]
    return first if images.shape[1] == 3 and bool((images == first).all()) else images


def check_range(path: Path, ranges: Sequence[tuple[float, float, int, int]]) -> None:
    """Raise ValueError for values that are not those of images in [-1, 1].

    ranges: of parts: least and largest value, number beyond -1.1 .. 1.1, and number of values.
    """
    if not ranges:
        return
    lows, highs, beyond, counts = zip(*ranges, strict=True)
    low, high, share = min(lows), max(highs), sum(beyond) / sum(counts)
    if 0 <= low < high <= 1:
        raise ValueError(
            f"{path} must hold values in [-1, 1], got none below 0: images in [0, 1] would be "
            "pale; store 2 * x - 1, or bytes as uint8"
        )
    if low > -NEAR_END or high < NEAR_END or share > MOST_BEYOND:
        raise ValueError(
            f"{path} must hold values in [-1, 1], black -1 and white 1, got {low:.3g} .. "
            f"{high:.3g}, {100 * share:.0f} % of them beyond {BEYOND_END}: scale them, or store "
            "bytes as uint8"
        )


def read_images(path: str | Path, limit: int | None = None, *, at_random: bool = False) -> ImageSet:
    """The first `limit` images (all by default) of a file or folder.

    at_random: the first in a fixed random order instead, since files are often sorted by class;
    not of the shards of `dsmooth sample`.

    A .npy or .npz (array x, images, samples or arr_0), a folder of .npy shards as `dsmooth sample`
    writes it, a folder of image files, in any subfolders, or one such file. Arrays are (N, C, H,
    W), (N, H, W, C) or (N, H, W), of bytes or of floating point in [-1, 1], which
    `dsmooth.data.to_bytes` turns into bytes; another range is refused, unless dsmooth drew them.

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
        drawn = not OWN_ARRAYS.isdisjoint(arrays)
        found = _collect([arrays[name]], path, limit, at_random, drawn=drawn)
        count = len(np.atleast_1d(arrays[name]))
        for labels in (arrays[key] for key in LABEL_NAMES if key in arrays):
            if labels.dtype.kind in "iu" and labels.shape == (count,):
                rows = labels.astype(np.int64)[_chosen(count, limit, at_random)]
                names = tuple(map(str, np.atleast_1d(arrays.get("class_names", ()))))
                return replace(found, labels=torch.from_numpy(rows), class_names=names)
        return found
    if path.suffix == ".npy":
        return _collect([_load_npy(path)], path, limit, at_random)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return ImageSet(read_pictures(path, [path]), str(path), torch.ones(1, dtype=torch.bool))
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder, image file, .npz or .npy {path}")
    check_folder(path)
    records = [path / kind.manifest for kind in (Shards, Pictures)]
    request = next((read_parts(r, str)[0] for r in records if r.exists()), {})
    with guarded(path, "images that dsmooth drew"):
        networks = request.get("models", {}).values()
        names = next(filter(None, (network.get("class_names") for network in networks)), ())
        label, names = request.get("label"), tuple(names)
    if shards := sorted(path.glob("*.npy")):
        drawn = (path / Shards.manifest).exists()
        found = _collect(map(_load_npy, shards), path, limit, at_random and not drawn, drawn=drawn)
        return replace(found, drawn_with=label, class_names=names)
    if paths := image_paths(path):
        images = read_pictures(path, [paths[i] for i in _chosen(len(paths), limit, at_random)])
        kept = torch.ones(len(images), dtype=torch.bool)
        source = f"{path} ({len(images):,} image files)"
        return ImageSet(images, source, kept, drawn_with=label, class_names=names)
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


def _chosen(count: int, limit: int | None, at_random: bool) -> NDArray[np.int64]:
    """The numbers of the images to take, in rising order."""
    order = epoch_order(count, 0, 0) if at_random and count else torch.arange(count)
    return order[:limit].sort().values.numpy()


def _collect(
    arrays: Iterable[NDArray[np.generic]],
    path: Path,
    limit: int | None,
    at_random: bool = False,
    *,
    drawn: bool = False,
) -> ImageSet:
    """One set of `limit` images in `arrays`, a thousand at a time.

    drawn: whether dsmooth drew them, whose range is known.
    """
    parts: list[Tensor] = []
    kept: list[Tensor] = []
    arrays = [*map(np.atleast_1d, arrays)]
    rows = _chosen(sum(map(len, arrays)), limit, at_random)
    first, ranges = 0, []
    for array in arrays:
        is_bytes = array.dtype == np.uint8
        if not is_bytes and array.dtype.kind != "f":
            raise ValueError(f"{path} must hold bytes or floating-point values, got {array.dtype}")
        own = rows[(rows >= first) & (rows < first + len(array))] - first
        for begin in range(0, max(1, len(own)), 1000):
            pixels = array[own[begin : begin + 1000]]
            x = torch.from_numpy(np.array(pixels, np.uint8 if is_bytes else np.float32))
            x = channels_first(x, str(path))
            kept.append(torch.ones(len(x), dtype=torch.bool) if is_bytes else ~is_diverged(x))
            if not is_bytes:
                x = x[kept[-1]]
                if x.numel():
                    beyond = int((x.abs() > BEYOND_END).sum())
                    ranges.append((float(x.min()), float(x.max()), beyond, x.numel()))
            parts.append(x if is_bytes else to_bytes(x))
        first += len(array)
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"{path} holds images of different shapes: {sorted(shapes)}")
    images = torch.cat(parts)
    if not drawn and images.numel():
        check_range(path, ranges)
        warn_of_range(images, f"the images of {path}")
    return ImageSet(images, f"{path} ({len(rows):,} images)", torch.cat(kept))
