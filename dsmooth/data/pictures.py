"""One picture from one file, by Pillow, within bounds. Everything that decodes pictures comes here.

Pillow chooses a decoder by a file's content, not by its name. Only the formats in `FORMATS` may be
chosen: others run programs (EPS) or are seldom tested.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, BinaryIO

from dsmooth.data.guard import Refused, guarded, open_regular, shown

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 26  # 8192 x 8192; also of all pictures that are decoded at one time
MAX_SIDE = 1 << 16
MAX_BYTES = 1 << 28  # of a file: four uncompressed bytes a pixel

_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 turn the image by 90 degrees
_GREY, _WIDE = ("1", "L", "LA"), ("I", "F")
_MAX_SCANS = 100  # of a JPEG file; libjpeg's own progressive files have about 10
_MAX_COMMENTS = 1000  # of a PPM file in text: Pillow copies the file to leave one out
_MAX_STRIPS = 1 << 18  # of a TIFF file: tiles of 16 x 16 at `MAX_PIXELS`
# Between a JPEG's scans stand segments with lengths; inside a scan, FF is followed by 0 or by a
# restart mark (D0 to D7). FF 01 has no length.
_JPEG_MARK = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])")
_STRIPS = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
_BITS, _TILE_WIDTH, _TILE_LENGTH = 258, 322, 323
_COMPRESSIONS = frozenset(
    ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "group3")
) | {"group4", "tiff_ccitt"}


class _Room:
    """Room for `total` units at one time; who finds too little waits."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._changed = Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


# Taken in this order, so that nobody who holds pixels waits for bytes.
_bytes_in_flight, _pixels_in_flight = _Room(MAX_BYTES), _Room(MAX_PIXELS)


@dataclass(frozen=True)
class Header:
    """A picture before it is decoded; size: (height, width) as it is shown."""

    grey: bool
    size: tuple[int, int]
    may_be_transparent: bool = False


def pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModuleNotFoundError(
            "reading image files needs Pillow: pip install pillow", name="PIL"
        ) from error
    return Image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow has: WEBP may be missing."""
    image_module = pillow()
    image_module.preinit()  # PNG, JPEG, BMP and PPM
    from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401

    return tuple(name for name in FORMATS if name in image_module.OPEN)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Hold back Pillow's warnings: what matters of them is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_header(path: Path) -> Header:
    """Return the header of the picture `path`. Raises as `read_picture` does."""
    with _opened(path, whole=False) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        size = (width, height) if turned else (height, width)
        return Header(image.mode in _GREY, size, image.has_transparency_data)


def read_picture(path: Path, mode: str) -> Image:
    """Return the picture `path`, upright as its EXIF says, in Pillow's mode "L" or "RGB".

    Raises FileNotFoundError for a link to nothing, and ValueError, naming the file, for anything
    but one opaque picture of 8 bits a channel in one of `FORMATS` within the bounds above.
    """
    from PIL import ImageOps

    with _opened(path, whole=True) as file:
        image: Image = ImageOps.exif_transpose(file)
        image.load()
        # The look of a transparent pixel depends on its background, which is not ours to choose.
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        if alpha is not None and alpha.getextrema() != (255, 255):
            raise Refused(f"{shown(path)} must be opaque, got transparent pixels; flatten it first")
        return image.convert(mode)


@contextmanager
def _opened(path: Path, whole: bool) -> Iterator[Any]:
    """Open a picture that passes every check; whole: it will be decoded, else its header is read.

    Errors inside become ValueError too.
    """
    image_module = pillow()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise Refused(
                f"{shown(path)} is too long for an image: expected at most {MAX_BYTES} bytes, "
                f"found {size}"
            )
        head = file.read(32)
        canvas = _webp_size(head)
        if canvas is not None:  # Pillow allocates it to open the file
            _check_size(path, *canvas)
        held = max(size, 4 * canvas[0] * canvas[1] if canvas else 0)
        with guarded(path, "an image"), _bytes_in_flight.take(held):
            stream: BinaryIO = file
            if whole:
                file.seek(0)
                stream = io.BytesIO(file.read(MAX_BYTES))
                _check_scans(path, head, stream)
            _check_strips(path, head, stream)
            stream.seek(0)
            try:
                image = image_module.open(stream, formats=_formats())
            except image_module.DecompressionBombError as error:
                pixels = re.search(r"\d+", str(error))
                raise Refused(
                    f"{shown(path)} is too large: expected at most {MAX_PIXELS} pixels, got "
                    f"{pixels[0] if pixels else 'more'}"
                ) from None
            except image_module.UnidentifiedImageError:
                raise Refused(
                    f"{shown(path)} cannot be read as an image (it is none of "
                    f"{', '.join(FORMATS)}, or its header is damaged)"
                ) from None
            with image:
                _check(path, image)
                with _pixels_in_flight.take(image.width * image.height):
                    yield image


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise Refused(
            f"{shown(path)} is too large: expected at most {MAX_PIXELS} pixels and {MAX_SIDE} a "
            f"side, got {height} x {width}"
        )


def _check(path: Path, image: Any) -> None:
    """Refuse a picture, opened but not decoded, that is too large, animated or too deep."""
    _check_size(path, *image.size)
    # Phones put a second, smaller picture after a JPEG's own: Pillow calls that format MPO.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise Refused(f"{shown(path)} must hold one image, got several (an animation or pages)")
    if image.format == "TIFF":
        compression = image.info.get("compression", "raw")
        if compression not in _COMPRESSIONS:
            raise Refused(
                f"{shown(path)} must be compressed by one of {', '.join(sorted(_COMPRESSIONS))}, "
                f"got {compression}"
            )
        tile = (image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_LENGTH, 1))
        _check_size(path, *tile)
    depth = _depth(image)
    if image.mode in _WIDE or image.mode.startswith("I;") or depth > 8:
        raise Refused(
            f"{shown(path)} must have 8 bits a channel, got Pillow's mode {image.mode}"
            + (f" of {depth} bits" if depth > 8 else "")
        )


def _depth(image: Any) -> int:
    """Return the bits of a channel in the file, where Pillow's mode would hide that they are 16."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS, (1,))))
    arguments = [tile[3] for tile in image.tile]
    flat = [a for group in arguments for a in (group if isinstance(group, tuple) else (group,))]
    if image.format == "PPM":
        largest = max((a for a in flat if isinstance(a, int)), default=255)
        return max(8, largest.bit_length())
    return (
        16 if any(isinstance(a, str) and ";16" in a for a in flat if image.format == "PNG") else 8
    )


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a WebP file's canvas, None of anything else."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        width, height = head[24:27], head[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _check_scans(path: Path, head: bytes, stream: io.BytesIO) -> None:
    """Refuse what takes far longer to decode than its size and pixels account for."""
    content = stream.getvalue()
    if head[:2] in (b"P1", b"P2", b"P3") and content.count(b"#") > _MAX_COMMENTS:
        raise Refused(f"{shown(path)} has too many comments: expected at most {_MAX_COMMENTS}")
    if head[:2] != b"\xff\xd8":
        return
    # A JPEG file may go over its pixels as often as it likes.
    position, scans = 2, 0
    while (found := _JPEG_MARK.search(content, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    if scans > _MAX_SCANS:
        raise Refused(f"{shown(path)} has {scans} scans: expected at most {_MAX_SCANS}")


def _check_strips(path: Path, head: bytes, stream: BinaryIO) -> None:
    """Refuse a TIFF file with more strips or tiles than pictures need: Pillow lists them all."""
    if head[:4] not in (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+"):
        return
    if b"+" in head[2:4]:
        raise Refused(f"{shown(path)} is a BigTIFF file: expected one of at most {MAX_BYTES} bytes")
    order = "<" if head[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(f"{order}L", head, 4)
    stream.seek(offset)
    (entries,) = struct.unpack(f"{order}H", stream.read(2))
    content = stream.read(12 * entries)
    for tag, _, count, _ in struct.iter_unpack(f"{order}HHLL", content[: len(content) // 12 * 12]):
        if tag in _STRIPS and count > _MAX_STRIPS:
            raise Refused(
                f"{shown(path)} has {count} strips or tiles: expected at most {_MAX_STRIPS}"
            )
