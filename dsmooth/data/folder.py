"""Pictures by Pillow, within bounds: files in a folder, and what a picture must be to be used.

Pillow chooses a decoder by a file's content, not by its name. Only the formats in `FORMATS` may be
chosen: others run programs (EPS) or are seldom tested.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ..progress import LOG, progress
from .dataset import ImageDataset
from .reading import InvalidFile, check_memory, guarded, missing

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
GREY_MODES = ("1", "L", "LA")
MAX_PIXELS = 1 << 26  # 8192 x 8192
TEST_FRACTION = 0.1
HELD_OUT_FOLDERS = ("test", "val", "valid", "validation")

_MAX_BYTES = 1 << 28  # of a file: four uncompressed bytes a pixel
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_CHUNK = 64  # pictures that wait for a thread
_MOST_NAMED = 10  # images in an error
_MOST_SIZES = 4  # in an error
_MOST_COUNTED = 1000  # images whose sizes are counted, should they differ
_SUGGESTED_SIZE = 64
_CROP = "to crop and resize them to a multiple of 4, set"


def load_folder(
    splits: Sequence[str],
    folder: Path,
    image_size: int | None = None,
    show_progress: bool = False,
) -> list[ImageDataset]:
    """The splits of a folder: images of one size, or cropped and resized, grey if all are.

    splits: "train", "test" or "all". Each subfolder is a class. Folders train and test (or val,
    valid, validation) are the splits, each with its classes; else one image in ten is for tests.
    Images are in the order of a hash of their paths, so that the first ones are of every class.
    """
    paths = image_paths(folder)
    if not paths:
        folders = f"{printable(folder)} or the folders inside it"
        raise missing("folder", f"no image ({', '.join(sorted(SUFFIXES))}) is in {folders}")
    parts = [paths_of_split(folder, paths, split) for split in splits]
    chosen = [path for part in parts for path in part]
    images = read_pictures(folder, chosen, image_size, show_progress=show_progress)
    height, width = images.shape[2:]
    if not are_sides(height, width):
        raise InvalidFile(
            f"the images must have a height and width that are multiples of 4, got {height} x "
            f"{width} in {printable(chosen[0])}; {_CROP}",
            image_size=_usable_size([height, width]),
        )
    others = sorted(set(paths).difference(chosen))
    if images.shape[1] == 1 and any(_in_threads(_is_coloured, others)):
        images = images.repeat(1, 3, 1, 1)
    classes, names = _classes(folder, paths)
    files = (path for path in _visible(folder) if path.suffix.lower() not in SUFFIXES)
    kinds = Counter(path.suffix or "without suffix" for path in files if path.is_file())
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    left_out = f"; left out of the folder: {printable(counts)}" * bool(counts)
    datasets = []
    for split, part, pixels in zip(splits, parts, images.split([*map(len, parts)]), strict=True):
        labels = torch.tensor([classes[path] for path in part]) if names else None
        source = f"{printable(folder)} ({len(part):,} images{left_out})"
        datasets.append(ImageDataset(pixels, labels, "folder", split, source, class_names=names))
    return datasets


def image_paths(folder: Path) -> list[Path]:
    """The image files in a folder and in those inside it, but hidden ones, in the names' order."""
    paths = (path for path in _visible(folder) if path.suffix.lower() in SUFFIXES)
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def shows_colours(folder: Path) -> bool:
    """Whether the first picture of a folder has colours; not if there is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    for path in image_paths(folder)[:1]:
        with suppress(OSError, UnidentifiedImageError), Image.open(path, formats=FORMATS) as image:
            return image.mode not in GREY_MODES
    return False


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield path


def paths_of_split(folder: Path, paths: list[Path], split: str) -> list[Path]:
    """The files of `image_paths` that `load_folder` reads, in its order. Raises as it does."""
    held_out = _held_out_folder(folder, paths)
    if split == "all":
        chosen = paths
    elif held_out is not None:
        top = "train" if split == "train" else held_out
        chosen = [path for path in paths if path.relative_to(folder).parts[0] == top]
    elif len(paths) < 2:
        raise InvalidFile(
            f"{printable(folder)} must hold at least 2 images, one to test with, found 1"
        )
    else:  # by a hash of the path: an image stays in its split as others come and go
        keys = [_hash_of(folder, path) for path in paths]
        # The bounds keep an image in either split of a small folder, whatever the names.
        limit = max(min(keys), min(max(keys) - 1, int(TEST_FRACTION * 2**64)))
        test = split == "test"
        chosen = [path for path, key in zip(paths, keys, strict=True) if (key <= limit) == test]
    return sorted(chosen, key=partial(_hash_of, folder))


def read_pictures(
    folder: Path,
    paths: Sequence[Path],
    size: int | None = None,
    crop: int | None = None,
    show_progress: bool = False,
) -> Tensor:
    """Upright pictures of one size, grey if all are: (N, C, H, W) uint8. Each file is opened once.

    size: pixels a side of centred squares, to which pictures are cropped and resized. crop: pixels
    a side before they are resized, by default as many as there are.
    Raises InvalidFile, naming the first ten pictures that cannot be used.
    """
    images: NDArray[np.uint8] | None = None
    refused, enlarged = list[str](), 0
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)  # by height and width
    work = partial(_read_picture, size=size, crop=crop)
    bar = progress("reading images", len(paths)) if show_progress else nullcontext(lambda _: None)
    with bar as show:
        for row, read in enumerate(_in_threads(work, paths)):
            if isinstance(read, str):
                refused.append(read)
            else:
                picture, side = read
                enlarged += size is not None and side < size
                if images is None:
                    check_memory(folder, len(paths) * picture.size)
                    images = np.empty((len(paths), *picture.shape), np.uint8)
                elif len(picture) > images.shape[1]:
                    images = images.repeat(3, axis=1)  # all before were grey
                height, width = picture.shape[1:]
                sizes[height, width].append(paths[row])
                if len(sizes) == 1:
                    images[row] = picture
            show(row + 1)
            if len(refused) == _MOST_NAMED or (len(sizes) > 1 and row + 1 >= _MOST_COUNTED):
                break
    if len(refused) > 1:
        count = f"{len(refused)} of the first {row + 1:,} images"
        refused = ["\n  ".join([f"{count} cannot be used:", *refused])]
    if len(sizes) > 1:
        counts = f"the first {row + 1:,} images must have one size, got {_describe_sizes(sizes)}"
        usable = _usable_size([side for size_found in sizes for side in size_found])
        raise InvalidFile("\n".join([*refused, f"{counts}; {_CROP}"]), image_size=usable)
    if refused:
        raise InvalidFile(refused[0])
    if enlarged:
        LOG.warning("%d of %d images are enlarged to %d x %d", enlarged, len(paths), size, size)
    return torch.from_numpy(images)


def _describe_sizes(sizes: Mapping[tuple[int, int], Sequence[Path]]) -> str:
    """How many images have each size; the name of one that is the only one of its size."""
    by_count = sorted(sizes.items(), key=lambda item: -len(item[1]))
    words = [
        f"{len(paths):,} of {height} x {width}" + f" ({printable(paths[0])})" * (len(paths) == 1)
        for (height, width), paths in by_count[:_MOST_SIZES]
    ]
    if rest := by_count[_MOST_SIZES:]:
        words.append(f"{sum(len(paths) for _, paths in rest):,} of other sizes")
    return ", ".join(words)


def _read_picture(
    path: Path, size: int | None, crop: int | None
) -> tuple[NDArray[np.uint8], int] | str:
    """The pixels (C, H, W) of a file and the side of its square, or why it cannot be used."""
    from PIL.Image import Resampling

    try:
        with _opened(path) as image:
            picture = upright(image)
        side = min(picture.size) if crop is None else crop
        if min(picture.size) < side:
            raise InvalidFile(
                f"{printable(path)} must be at least {side} x {side} (CelebA's aligned images are "
                f"218 x 178), got {picture.height} x {picture.width}"
            )
    except (ValueError, OSError) as error:
        return str(error)
    if size is not None:
        left, top = ((extent - side) // 2 for extent in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
        if side != size:  # by a filter that widens with the scale: it averages
            picture = picture.resize((size, size), Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1), side


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open one opaque picture of 8 bits a channel; errors inside name the file."""
    from PIL import Image

    with open_regular(path) as file, guarded(path, "an image"):
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise InvalidFile(
                f"{printable(path)} is too large: expected at most {_MAX_BYTES} bytes, found {size}"
            )
        with Image.open(file, formats=FORMATS) as image:
            tags = getattr(image, "tag_v2", {})  # TIFF's; a tile may be larger than the picture
            tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
            if (pixels := max(image.width * image.height, tile)) > MAX_PIXELS:
                raise InvalidFile(
                    f"{printable(path)} is too large: expected at most {MAX_PIXELS} pixels, in a "
                    f"tile too, got {pixels}"
                )
            if (found := obstacle(image)) is not None:
                raise InvalidFile(f"{printable(path)} {found.reason}")
            yield image


def _held_out_folder(folder: Path, paths: list[Path]) -> str | None:
    """The subfolder of the held-out images, if the folder also has "train"; else None.

    Raises ValueError for images outside the two.
    """
    tops = {path.relative_to(folder).parts[0] for path in paths}
    held_out = next((name for name in HELD_OUT_FOLDERS if name in tops), None)
    if held_out is None or "train" not in tops:
        return None
    if others := sorted(tops - {"train", *HELD_OUT_FOLDERS}):
        raise InvalidFile(
            f"{printable(folder)} holds train and {held_out}, so it must hold no other images, "
            f"found {printable(others[0])}: move it, or rename the two if they are classes"
        )
    return held_out


def _hash_of(folder: Path, path: Path) -> int:
    """64 bits that depend only on the path in the folder."""
    name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(sha256(name).digest()[:8], "big")


def _classes(folder: Path, paths: list[Path]) -> tuple[dict[Path, int], tuple[str, ...]]:
    """The number of each path's subfolder, by name, and the names; none outside of two or more."""
    depth = 0 if _held_out_folder(folder, paths) is None else 1
    parts = {path: path.relative_to(folder).parts[depth:] for path in paths}
    names = sorted({folders[0] for folders in parts.values()})
    if len(names) < 2 or any(len(folders) == 1 for folders in parts.values()):
        return {}, ()
    return {path: names.index(parts[path][0]) for path in paths}, tuple(map(printable, names))


def _in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """work(path) of each, by threads: Pillow lets go of the interpreter's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is an error here
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(work, paths[start : start + _CHUNK])


def _usable_size(sizes: Sequence[int]) -> int:
    """A size, a multiple of 4, for images of these heights and widths."""
    return max(4, min(_SUGGESTED_SIZE, min(sizes) // 4 * 4))


class Obstacle(NamedTuple):
    """Why a picture cannot be used, and a line of Python that makes a usable PIL image of it."""

    reason: str
    conversion: str = ""


def obstacle(image: Image) -> Obstacle | None:
    """Why a picture cannot be used; None for one opaque picture of 8 bits a channel."""
    # Phones put a second, smaller picture after a JPEG's own: Pillow calls that MPO.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return Obstacle("must hold one image, got several (an animation or pages)")
    # Pillow decodes RGB of 16 bits, "RGB;16B", or of a PPM's 65535 shades, to 8 bits.
    arguments = [tile.args or () for tile in getattr(image, "tile", ())]
    deep = any(re.search(";16[BLN]", str(args)) for args in arguments)
    if image.format == "PPM":
        deep |= any(type(a) is int and a > 255 for args in arguments for a in args)
    if deep or image.mode[0] in "IF":
        bits = " of 16 bits" * deep
        return Obstacle(
            f"must have 8 bits a channel, got Pillow's mode {image.mode}{bits}",
            'Image.fromarray((numpy.asarray(image) // 257).astype("uint8")), if its values go to '
            "65535",
        )
    # How a transparent pixel looks depends on a background.
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None and alpha.getextrema() != (255, 255):
        return Obstacle(
            "must be opaque, got transparent pixels; flatten it first",
            'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))'
            '.convert("RGB")',
        )
    return None


def upright(image: Image) -> Image:
    """The picture turned as its EXIF data says, in mode L if it is grey, else RGB."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("L" if image.mode in GREY_MODES else "RGB")


def _is_coloured(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode not in GREY_MODES
