"""Pictures by Pillow: files in a folder, and what a picture must be to be used.

Pillow chooses a decoder by a file's content, not by its name. Only the formats in `FORMATS` may be
chosen: others run programs (EPS) or are seldom tested.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..fields import SettingError
from ..files import guarded, open_regular, printable
from ..pixels import are_sides
from ..progress import LOG, advance_to, are_lines_shown, progress
from .dataset import ImageDataset, stacked
from .order import held_out

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


class MissingFiles(SettingError, FileNotFoundError):
    """Files of a data set are not there."""


def load_folder(
    splits: Sequence[str], folder: Path, image_size: int | None = None
) -> list[ImageDataset]:
    """The splits of a folder: images of one size, or cropped and resized, grey if all are.

    splits: "train", "test" or "all". Each subfolder is a class. Folders train and test, or as in
    TRAIN_FOLDERS and HELD_OUT_FOLDERS, are the splits, each with its classes; else one image in ten
    is for tests, by a hash of its pixels, so that copies stay together. Images are in the order of
    this hash, or of one of their paths in split folders, so that the first are of every class.
    """
    paths = image_paths(folder)
    parts = [path.relative_to(folder).parts for path in paths]
    train, test = split_names({top.lower(): top for top, *_ in sorted(parts, reverse=True)})
    is_split, words, given = train is not None and test is not None, "", [""] * len(paths)
    if is_split:
        others = sorted({top for top, *_ in parts} - {train, test})
        for name in others:
            if name.lower() not in (*TRAIN_FOLDERS, *HELD_OUT_FOLDERS):
                raise ValueError(
                    f"{printable(folder)} holds {train} and {test}, so it must hold no other "
                    f"images, found {printable(name)}: move it, or rename the two if they are "
                    "classes"
                )
        words = f"; {test} is held out" + f", {' and '.join(others)} left out" * bool(others)
        given = [{train: "train", test: "test"}.get(top, "") for top, *_ in parts]
    classes = [inner[is_split] if len(inner) > 1 + is_split else "" for inner in parts]
    names = sorted({*classes}) if "" not in classes and len({*classes}) > 1 else []
    everything, files = not is_split or "all" in splits, [*zip(paths, classes, given, strict=True)]
    rest = [path for path, _, split in files if not (everything or split in splits)]
    files = [file for file in files if everything or file[2] in splits]
    paths, classes, given = map(list, zip(*files, strict=True))
    images = read_pictures(paths, image_size)
    if not are_sides(*images.shape[2:]):
        raise SettingError(
            (),
            f"{printable(paths[0])} must have a height and width that are multiples of 4, got "
            f"{images.shape[2]} x {images.shape[3]}; to crop and resize them, set",
            image_size=None,
        )
    if is_split:
        keys = [_hash(os.fsencode(path.relative_to(folder).as_posix())) for path in paths]
    else:
        keys = [_hash(row.numpy().tobytes()) for row in images.expand(-1, 3, -1, -1)]
        given = ["test" if chosen else "train" for chosen in held_out(keys, classes)]
    if images.shape[1] == 1 and any(_in_threads(_is_coloured, rest)):
        images = images.repeat(1, 3, 1, 1)
    size = "" if image_size is None else f", cropped to {image_size} x {image_size}"
    numbers, datasets = {name: number for number, name in enumerate(names)}, []
    order = sorted(range(len(paths)), key=lambda row: (keys[row], classes[row]))
    for split in splits:
        rows = [row for row in order if split in ("all", given[row])]
        if not rows:
            few = "must hold at least 2 different images, one to test with"
            raise ValueError(f"{printable(folder)} {few}")
        labels = torch.tensor([numbers[classes[row]] for row in rows]) if names else None
        source = f"{printable(folder)} ({len(rows):,} images{size}{words})"
        class_names = tuple(map(printable, names))
        datasets.append(ImageDataset(images[rows], labels, "folder", split, source, class_names))
    return datasets


def split_names(found: Mapping[str, T]) -> tuple[T | None, T | None]:
    """The training and the held-out split of those found, by their names in small letters."""
    kinds = (TRAIN_FOLDERS, HELD_OUT_FOLDERS)
    train, test = (next((found[name] for name in kind if name in found), None) for kind in kinds)
    return train, test


def image_paths(folder: Path) -> list[Path]:
    """The image files in a folder and in those inside it, links followed, but hidden ones, in the
    order of their names. Raises MissingFiles if there are none."""
    found, others = _find(folder)
    counts = [
        f"{count:,} {printable(suffix) or 'files without suffix'}" for suffix, count in others
    ]
    left_out = f"left out, since they are not {', '.join(FORMATS)}: {', '.join(counts)}"
    if not found:
        words = f"no image is in {printable(folder)} or the folders inside it"
        raise MissingFiles((), f"{words}; {left_out}" if counts else words)
    if counts:
        LOG.warning("%s: %s", printable(folder), left_out)
    return found


def _find(folder: Path) -> tuple[list[Path], list[tuple[str, int]]]:
    """The image files as `image_paths` returns them, and the number of other files by suffix."""
    found, others = list[Path](), Counter[str]()
    above = {str(folder): {os.path.realpath(folder)}}
    for top, folders, names in os.walk(folder, followlinks=True):
        inner = {
            name: os.path.realpath(os.path.join(top, name))
            for name in folders
            if not name.startswith(".") and name != "__MACOSX"
        }
        folders[:] = [name for name in inner if inner[name] not in above[top]]  # links go round
        for name in folders:
            above[os.path.join(top, name)] = above[top] | {inner[name]}
        for path in (Path(top, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES or _is_picture(path):
                found.append(path)
            else:
                others[path.suffix.lower()] += 1
    found.sort(key=lambda path: path.relative_to(folder).as_posix())
    return found, others.most_common()


def shows_colours(folder: Path) -> bool:
    """Whether the first picture of a folder has colours; not if there is none that can be read."""
    with suppress(OSError, ValueError):
        return any(map(_is_coloured, _find(folder)[0][:1]))
    return False


def read_pictures(
    paths: Sequence[Path], size: int | None = None, crop: int | None = None
) -> Tensor:
    """Upright pictures of one size, grey if all are: (N, C, H, W) uint8. Each file is opened once.

    size: pixels a side of centred squares, to which pictures are cropped and resized. crop: pixels
    a side before they are resized, by default as many as there are.
    Raises ValueError, once for all pictures that cannot be used.
    """

    def apply(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
        for number, row in enumerate(_in_threads(read, paths), start=1):
            yield row
            advance_to(number / len(paths))

    read = partial(_read_picture, size=size, crop=crop)
    with progress("reading images", len(paths)) if are_lines_shown() else nullcontext():
        return stacked(read, paths, lambda number: printable(paths[number]), apply)


def _read_picture(path: Path, size: int | None, crop: int | None) -> Tensor:
    """The pixels (C, H, W) of a file."""
    from PIL.Image import Resampling

    with _opened(path) as image:
        if size is not None and crop is None:
            image.draft(None, (size, size))  # a JPEG is decoded at a half, quarter or eighth
        picture = upright(image)
        side = crop or min(picture.size)
        if min(picture.size) < side:
            raise ValueError(f"at least {side} x {side} are needed (CelebA's are 218 x 178)")
    if size is not None:
        left, top = ((extent - side) // 2 for extent in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
        if side != size:  # by a filter that widens with the scale: it averages
            picture = picture.resize((size, size), Resampling.BILINEAR)
    return torch.from_numpy(np.atleast_3d(np.array(picture)).transpose(2, 0, 1))


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open a picture; errors inside name the file."""
    from PIL import Image

    with (
        open_regular(path) as file,
        guarded(path, "an image"),
        Image.open(file, formats=FORMATS) as image,
    ):
        yield image


def upright(image: Image) -> Image:
    """The picture turned as its EXIF data says, in mode L if it is grey, else RGB.

    Raises ValueError for all but one opaque picture of 8 bits a channel.
    """
    from PIL import ImageOps

    # Phones put a second, smaller picture after a JPEG's own: Pillow calls that MPO.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("must hold one image, got several (an animation)")
    # Pillow decodes RGB of 16 bits, "RGB;16B", to 8 bits.
    arguments = [str(tile.args) for tile in getattr(image, "tile", ())]
    if image.mode[0] in "IF" or any(re.search(";16[BLN]", text) for text in arguments):
        raise ValueError(f"must have 8 bits a channel, got more (Pillow's mode {image.mode})")
    # How a transparent pixel looks depends on a background.
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        raise ValueError("must be opaque, got transparent pixels")
    return ImageOps.exif_transpose(image).convert("L" if image.mode in GREY_MODES else "RGB")


def _is_picture(path: Path) -> bool:
    with suppress(OSError, ValueError), _opened(path):
        return True
    return False


def _is_coloured(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode not in GREY_MODES


def _hash(content: bytes) -> int:
    """64 bits that depend only on the content."""
    return int.from_bytes(sha256(content).digest()[:8], "big")


def _in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """work(path) of each, by threads: Pillow lets go of the interpreter's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is an error here
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(work, paths[start : start + _CHUNK])
