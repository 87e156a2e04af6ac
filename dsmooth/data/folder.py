"""Pictures by Pillow, within bounds: files in a folder, and what a picture must be to be used.

Pillow chooses a decoder by a file's content, not by its name. Only the formats in `FORMATS` may be
chosen: others run programs (EPS) or are seldom tested.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import open_regular, printable
from ..pixels import are_sides
from ..progress import advance_to, are_lines_shown, progress
from .dataset import ImageDataset
from .order import held_out
from .reading import InvalidFile, check_memory, guarded, missing

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))
GREY_MODES = ("1", "L", "LA")
# Names of subfolders that are splits, in any case, the first of each kind before the others.
TRAIN_FOLDERS = ("train", "training")
HELD_OUT_FOLDERS = ("test", "testing", "val", "valid", "validation")

_CHUNK = 64  # pictures that wait for a thread
_CROP = "to crop and resize them to a multiple of 4, set"


class Splits(NamedTuple):
    """The image files of a folder by split, each in the order of a hash of their paths.

    depth: of the subfolders that are classes. words: which subfolder is held out, if one is.
    """

    train: list[Path]
    test: list[Path]
    all: list[Path]
    depth: int
    words: str


def load_folder(
    splits: Sequence[str],
    folder: Path,
    image_size: int | None = None,
) -> list[ImageDataset]:
    """The splits of a folder: images of one size, or cropped and resized, grey if all are.

    splits: "train", "test" or "all". Each subfolder is a class. Folders train and test, or as in
    TRAIN_FOLDERS and HELD_OUT_FOLDERS, are the splits, each with its classes; else one image in ten
    is for tests. Images are in the order of a hash of their paths, so that the first ones are of
    every class.
    """
    paths = image_paths(folder)
    if not paths:
        folders = f"{printable(folder)} or the folders inside it"
        raise missing("folder", f"no image ({', '.join(sorted(SUFFIXES))}) is in {folders}")
    found = split_paths(folder, paths)
    parts = [getattr(found, split) for split in splits]
    if not all(parts):
        words = "must hold at least 2 images, one to test with, found 1"
        raise InvalidFile(f"{printable(folder)} {words}")
    chosen = [path for part in parts for path in part]
    images = read_pictures(folder, chosen, image_size)
    height, width = images.shape[2:]
    if not are_sides(height, width):
        raise InvalidFile(
            f"{printable(chosen[0])} must have a height and width that are multiples of 4, got "
            f"{height} x {width}; {_CROP}",
            image_size=None,
        )
    others = sorted(set(paths).difference(chosen))
    if images.shape[1] == 1 and any(_in_threads(_is_coloured, others)):
        images = images.repeat(1, 3, 1, 1)
    classes = _classes(folder, paths, found.depth)
    names = [] if None in classes else sorted({name for name in classes if name is not None})
    names = names if len(names) > 1 else []
    class_of, datasets = dict(zip(paths, classes, strict=True)), []
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    for split, part, pixels in zip(splits, parts, images.split([*map(len, parts)]), strict=True):
        labels = torch.tensor([numbers[class_of[path]] for path in part]) if names else None
        source = f"{printable(folder)} ({len(part):,} images{found.words})"
        class_names = tuple(map(printable, names))
        datasets.append(
            ImageDataset(pixels, labels, "folder", split, source, class_names=class_names)
        )
    return datasets


def image_paths(folder: Path) -> list[Path]:
    """The image files in a folder and in those inside it, links followed, but hidden ones, in the
    order of their names."""
    found, above = list[Path](), {str(folder): {os.path.realpath(folder)}}
    for top, folders, names in os.walk(folder, followlinks=True):
        inner = {
            name: os.path.realpath(os.path.join(top, name))
            for name in folders
            if not name.startswith(".") and name != "__MACOSX"
        }
        folders[:] = [name for name in inner if inner[name] not in above[top]]  # links go round
        for name in folders:
            above[os.path.join(top, name)] = above[top] | {inner[name]}
        files = (Path(top, name) for name in names if not name.startswith("."))
        found += [path for path in files if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def shows_colours(folder: Path) -> bool:
    """Whether the first picture of a folder has colours; not if there is none that can be read."""
    with suppress(OSError, ValueError):
        return any(map(_is_coloured, image_paths(folder)[:1]))
    return False


def split_paths(folder: Path, paths: Sequence[Path]) -> Splits:
    """The splits of the files in a folder. Raises ValueError for files outside of split folders."""
    ordered = sorted(paths, key=partial(_hash_of, folder))
    first = [path.relative_to(folder).parts[0] for path in ordered]
    by_name = {name.lower(): name for name in sorted(set(first), reverse=True)}
    train = next((by_name[name] for name in TRAIN_FOLDERS if name in by_name), None)
    test = next((by_name[name] for name in HELD_OUT_FOLDERS if name in by_name), None)
    if train is None or test is None:
        keys = [_hash_of(folder, path) for path in ordered]
        chosen = held_out(keys, _classes(folder, ordered, 0))
        parts = [[p for p, c in zip(ordered, chosen, strict=True) if c == t] for t in (False, True)]
        return Splits(parts[0], parts[1], ordered, 0, "")
    others = sorted(set(first) - {train, test})
    for name in others:
        if name.lower() not in (*TRAIN_FOLDERS, *HELD_OUT_FOLDERS):
            raise InvalidFile(
                f"{printable(folder)} holds {train} and {test}, so it must hold no other images, "
                f"found {printable(name)}: move it, or rename the two if they are classes"
            )
    words = f"; {test} is held out" + f", {' and '.join(others)} left out" * bool(others)
    parts = [[p for p, f in zip(ordered, first, strict=True) if f == n] for n in (train, test)]
    return Splits(parts[0], parts[1], ordered, 1, words)


def read_pictures(
    folder: Path,
    paths: Sequence[Path],
    size: int | None = None,
    crop: int | None = None,
) -> Tensor:
    """Upright pictures of one size, grey if all are: (N, C, H, W) uint8. Each file is opened once.

    size: pixels a side of centred squares, to which pictures are cropped and resized. crop: pixels
    a side before they are resized, by default as many as there are.
    Raises InvalidFile, naming the first picture that cannot be used.
    """
    images = np.empty((0, 1, 4, 4), np.uint8)
    work = partial(_read_picture, size=size, crop=crop)
    with progress("reading images", len(paths)) if are_lines_shown() else nullcontext():
        for row, picture in enumerate(_in_threads(work, paths)):
            if row == 0:
                check_memory(folder, len(paths) * picture.size)
                images = np.empty((len(paths), *picture.shape), np.uint8)
            (height, width), other = images.shape[2:], picture.shape[1:]
            if (height, width) != other:
                raise InvalidFile(
                    f"the images must have one size, got {height} x {width} in "
                    f"{printable(paths[0])} and {other[0]} x {other[1]} in {printable(paths[row])}"
                    f"; {_CROP}",
                    image_size=None,
                )
            if len(picture) > images.shape[1]:
                images = images.repeat(3, axis=1)  # all before were grey
            images[row] = picture
            advance_to((row + 1) / len(paths))
    return torch.from_numpy(images)


def _read_picture(path: Path, size: int | None, crop: int | None) -> NDArray[np.uint8]:
    """The pixels (C, H, W) of a file."""
    from PIL.Image import Resampling

    with _opened(path) as image:
        if size is not None and crop is None:
            image.draft(None, (size, size))  # a JPEG is decoded at a half, quarter or eighth
        picture = upright(image)
    side = min(picture.size) if crop is None else crop
    if min(picture.size) < side:
        raise InvalidFile(
            f"{printable(path)} must be at least {side} x {side} (CelebA's aligned images are "
            f"218 x 178), got {picture.height} x {picture.width}"
        )
    if size is not None:
        left, top = ((extent - side) // 2 for extent in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
        if side != size:  # by a filter that widens with the scale: it averages
            picture = picture.resize((size, size), Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open one opaque picture of 8 bits a channel; errors inside name the file."""
    from PIL import Image

    with (
        open_regular(path) as file,
        guarded(path, "an image"),
        Image.open(file, formats=FORMATS) as image,
    ):
        if (reason := obstacle(image)) is not None:
            raise InvalidFile(f"{printable(path)} {reason}")
        yield image


def _hash_of(folder: Path, path: Path) -> int:
    """64 bits that depend only on the path in the folder."""
    name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(sha256(name).digest()[:8], "big")


def _classes(folder: Path, paths: Sequence[Path], depth: int) -> list[str | None]:
    """The subfolder of each path at a depth, None for a file next to such folders."""
    parts = [path.relative_to(folder).parts[depth:] for path in paths]
    return [folders[0] if len(folders) > 1 else None for folders in parts]


def _in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """work(path) of each, by threads: Pillow lets go of the interpreter's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is an error here
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(work, paths[start : start + _CHUNK])


def obstacle(image: Image) -> str | None:
    """Why a picture cannot be used; None for one opaque picture of 8 bits a channel."""
    # Phones put a second, smaller picture after a JPEG's own: Pillow calls that MPO.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "must hold one image, got several (an animation)"
    # Pillow decodes RGB of 16 bits, "RGB;16B", to 8 bits.
    arguments = [str(tile.args) for tile in getattr(image, "tile", ())]
    if image.mode[0] in "IF" or any(re.search(";16[BLN]", text) for text in arguments):
        return f"must have 8 bits a channel, got more (Pillow's mode {image.mode})"
    # How a transparent pixel looks depends on a background.
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        return "must be opaque, got transparent pixels"
    return None


def upright(image: Image) -> Image:
    """The picture turned as its EXIF data says, in mode L if it is grey, else RGB."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("L" if image.mode in GREY_MODES else "RGB")


def _is_coloured(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode not in GREY_MODES
