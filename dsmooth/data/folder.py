"""Images in a folder, or one picture from one file, by Pillow, within bounds.

Pillow chooses a decoder by a file's content, not by its name. Only the formats in `FORMATS` may be
chosen: others run programs (EPS) or are seldom tested.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import open_regular, printable
from ..progress import LOG
from .dataset import ImageDataset
from .pillow import channels_of, obstacle, upright
from .reading import InvalidFile, guarded, make_room, missing

OnDecoded = Callable[[int, int], None]

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 1 << 26  # 8192 x 8192
TEST_FRACTION = 0.1
HELD_OUT_FOLDERS = ("test", "val", "valid", "validation")

_MAX_BYTES = 1 << 28  # of a file: four uncompressed bytes a pixel
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 turn the image by 90 degrees
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_CHUNK = 512  # pictures that wait for a thread
_MOST_NAMED = 10  # images in an error
_SUGGESTED_SIZE = 64


def load_folder(
    split: str, data_dir: Path, image_size: int | None = None, progress: OnDecoded | None = None
) -> ImageDataset:
    """Images of one size, or cropped and resized, grey if all are.

    split: "train", "test" or "all". Each subfolder is a class. Folders train and test (or val,
    valid, validation) are the splits, each with its classes; else one image in ten is for tests.
    Images are in the order of a hash of their paths, so that the first ones are of every class.
    """
    files = _visible(data_dir)
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    channels, sizes = _scan(data_dir, paths, check_sizes=image_size is None)
    size = sizes[0] if image_size is None else (image_size, image_size)
    if size[0] % 4 or size[1] % 4:
        raise InvalidFile(
            f"the images must have a height and width that are multiples of 4, got {size[0]} x "
            f"{size[1]} in {printable(paths[0])}; {_resize_hint(min(size))}"
        )
    smaller = sum(min(each) < min(size) for each in sizes)
    if smaller and split != "test":
        LOG.warning("%d of %d images are enlarged to %d x %d", smaller, len(sizes), *size)
    chosen = paths_of_split(data_dir, paths, split)
    crop = None if image_size is None else 0
    images = decode_all(data_dir, chosen, (channels, *size), crop, progress)
    labels, names = _classes(data_dir, paths, chosen)
    kinds = Counter(path.suffix for path in files if path.suffix.lower() not in SUFFIXES)
    counts = [f"{count:,} {kind or 'without suffix'}" for kind, count in kinds.most_common()]
    left_out = f"; left out of the folder: {printable(', '.join(counts))}" if counts else ""
    source = f"{printable(data_dir)} ({len(images):,} images{left_out})"
    return ImageDataset(images, labels, "folder", split, source, class_names=names)


def image_paths(folder: Path) -> list[Path]:
    """The image files in a folder and in those inside it, in the order of their names."""
    return [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES]


def paths_of_split(folder: Path, paths: list[Path], split: str) -> list[Path]:
    """The files of `image_paths` that `load_folder` reads, in its order. Raises as it does."""
    held_out = _held_out_folder(folder, paths)
    if split == "all":
        chosen = paths
    elif held_out is None:
        chosen = _split_by_hash(folder, paths, split)
    else:
        top = "train" if split == "train" else held_out
        chosen = [path for path in paths if path.relative_to(folder).parts[0] == top]
    return sorted(chosen, key=partial(_hash_of, folder))


def read_images_of_paths(folder: Path, paths: list[Path]) -> Tensor:
    """The images of files in a folder, of one size: (N, C, H, W) uint8."""
    channels, sizes = _scan(folder, paths, check_sizes=True)
    return decode_all(folder, paths, (channels, *sizes[0]))


def read_image_file(path: Path) -> Tensor:
    """Return the image in a file: (1, C, H, W) uint8, of any height and width."""
    return read_images_of_paths(path, [path])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open one opaque picture of 8 bits a channel; errors inside name the file."""
    from PIL import Image, UnidentifiedImageError

    def refuse(reason: str) -> InvalidFile:
        return InvalidFile(f"{printable(path)} {reason}")

    with open_regular(path) as file, guarded(path, "an image"):
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise refuse(f"is too large: expected at most {_MAX_BYTES} bytes, found {size}")
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise refuse(
                "cannot be read as an image (it is none of "
                f"{', '.join(FORMATS)}, or its header is damaged)"
            ) from None
        with image:
            tags = getattr(image, "tag_v2", {})  # TIFF's; a tile may be larger than the picture
            tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
            if max(image.width * image.height, tile) > MAX_PIXELS:
                raise refuse(
                    f"is too large: expected at most {MAX_PIXELS} pixels, got "
                    f"{image.height} x {image.width}" + f" in tiles of {tile}" * (tile > 0)
                )
            if (why := obstacle(image)) is not None:
                raise refuse(why)
            yield image


def _visible(folder: Path) -> list[Path]:
    """Files, and what is called an image, but for hidden ones, in the order of their names."""
    paths = (
        path
        for path in folder.rglob("*")
        if (path.suffix.lower() in SUFFIXES or path.is_file())
        and not any(
            part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts
        )
    )
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _held_out_folder(folder: Path, paths: list[Path]) -> str | None:
    """The subfolder of the held-out images beside "train"; None where there are no such two.

    Raises ValueError for other images beside the two.
    """
    tops = {path.relative_to(folder).parts[0] for path in paths}
    held_out = next((name for name in HELD_OUT_FOLDERS if name in tops), None)
    if held_out is None or "train" not in tops:
        return None
    if beside := sorted(tops - {"train", *HELD_OUT_FOLDERS}):
        raise InvalidFile(
            f"{printable(folder)} holds train and {held_out}, so it must hold no other images, "
            f"found {printable(beside[0])}: move it, or rename the two if they are classes"
        )
    return held_out


def _split_by_hash(folder: Path, paths: list[Path], split: str) -> list[Path]:
    """One in ten is for tests, by a hash of its path: it stays as others come and go."""
    if len(paths) < 2:
        raise InvalidFile(
            f"{printable(folder)} must hold at least 2 images, one to test with, found 1"
        )
    keys = [_hash_of(folder, path) for path in paths]
    # The bounds keep an image in either split of a small folder, whatever the names.
    limit = max(min(keys), min(max(keys) - 1, int(TEST_FRACTION * 2**64)))
    test = split == "test"
    return [path for path, key in zip(paths, keys, strict=True) if (key <= limit) == test]


def _hash_of(folder: Path, path: Path) -> int:
    """64 bits that depend on the path in the folder alone."""
    name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(sha256(name).digest()[:8], "big")


def _classes(
    folder: Path, every: list[Path], paths: list[Path]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """The numbers of the subfolders of `paths`, by name, and the names.

    None for images outside or a single folder.
    """
    depth = 0 if _held_out_folder(folder, every) is None else 1
    parts = {path: path.relative_to(folder).parts[depth:] for path in every}
    names = sorted({folders[0] for folders in parts.values()})
    if len(names) < 2 or any(len(folders) == 1 for folders in parts.values()):
        return None, ()
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[parts[path][0]] for path in paths]), tuple(map(printable, names))


def _in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """work(item) of each, by threads: Pillow lets go of the interpreter's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is an error here
        for start in range(0, len(items), _CHUNK):
            yield from pool.map(work, items[start : start + _CHUNK])


def _scan(folder: Path, paths: list[Path], check_sizes: bool) -> tuple[int, list[tuple[int, int]]]:
    """The channels for all images, and each one's (height, width), from their headers."""
    if not paths:
        suffixes = ", ".join(sorted(SUFFIXES))
        folders = f"{printable(folder)} or the folders inside it"
        raise missing("folder", f"no image ({suffixes}) is in {folders}")

    def read(path: Path) -> tuple[int, tuple[int, int]] | str:
        try:
            with _opened(path) as image:
                # Pillow states the size of a TIFF upright.
                turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in range(5, 9)
                return channels_of(image), image.size if turned else image.size[::-1]
        except (ValueError, OSError) as error:
            return str(error)

    headers = list(_in_threads(read, paths))
    refused = [reason for reason in headers if isinstance(reason, str)]
    if len(refused) == 1:
        raise InvalidFile(refused[0])
    if refused:
        left = len(refused) - _MOST_NAMED
        lines = "\n  ".join(refused[:_MOST_NAMED] + [f"... and {left:,} more"] * (left > 0))
        raise InvalidFile(f"{len(refused):,} of {len(paths):,} images cannot be used:\n  {lines}")
    sizes = [size for _, size in headers]
    other = [i for i, size in enumerate(sizes) if size != sizes[0]]
    if check_sizes and other:
        (height, width), (first_height, first_width) = sizes[other[0]], sizes[0]
        more = f" and {len(other) - 1:,} others" if len(other) > 1 else ""
        raise InvalidFile(
            f"the images must have one size, got {first_height} x {first_width} in "
            f"{printable(paths[0])} and {height} x {width} in {printable(paths[other[0]])}{more}; "
            f"{_resize_hint(min(map(min, sizes)))}"
        )
    return max(channels for channels, _ in headers), sizes


def _resize_hint(smallest: int) -> str:
    """Advice on images of no usable size; smallest: the smallest height or width."""
    size = max(4, min(_SUGGESTED_SIZE, smallest - smallest % 4))
    return f"give `image_size={size}` or another multiple of 4, to crop and resize them"


def decode_all(
    folder: Path,
    paths: list[Path],
    shape: tuple[int, int, int],
    crop: int | None = None,
    progress: OnDecoded | None = None,
) -> Tensor:
    """Upright pictures, or centred squares of `crop` pixels (0: the largest): (N, *shape) uint8."""
    from PIL import Image

    images = make_room(folder, (len(paths), *shape))

    def put(row: int) -> None:  # here, so that decoded images do not wait in memory
        with _opened(paths[row]) as image:
            picture = upright(image, shape[0])
        if crop is not None:
            side = crop or min(picture.size)
            if min(picture.size) < side:
                raise InvalidFile(
                    f"{printable(paths[row])} must be at least {side} x {side} (CelebA's aligned "
                    f"images are 218 x 178), got {picture.height} x {picture.width}"
                )
            left, top = ((extent - side) // 2 for extent in picture.size)
            picture = picture.crop((left, top, left + side, top + side))
            if side != shape[1]:  # by a filter that widens with the scale: it averages
                picture = picture.resize(shape[1:], Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        if pixels.shape != shape:
            raise InvalidFile(f"{printable(paths[row])} changed while it was read")
        images[row] = pixels

    for done, _ in enumerate(_in_threads(put, range(len(paths))), start=1):
        if progress is not None:
            progress(done, len(paths))
    return torch.from_numpy(images)
