"""Hostile and damaged files: an error that names the file, and nothing else."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsmooth.data import load_dataset
from dsmooth.data.folder import read_pictures
from dsmooth.data.sources import read_images
from dsmooth.files import read_npz
from tests.helpers.data_makers import random_bytes, refuses, write_images


def png(width: int, height: int, depth: int = 1, colour: int = 0) -> bytes:
    """A black PNG, grey or RGB (colour 2); its rows compress 1,000 times."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = 1 + (width * depth * (colour + 1) + 7) // 8
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(row * height))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def pages(kind: str) -> bytes:
    """Two of them, in a form that holds several."""
    from PIL import Image

    first, second = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (3, 200))
    buffer = io.BytesIO()
    several = {"append_images": [second]} if kind in ("PNG", "TIFF", "MPO") else {}
    first.save(buffer, kind, save_all=bool(several), **several)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"

# Suffix and content of a file, and a pattern of the error.
PICTURES: dict[str, tuple[str, bytes | Callable[[Path], object], str]] = {
    "EPS, which Ghostscript runs": ("png", EPS, "as an image .cannot identify"),
    "a named pipe": ("png", os.mkfifo, "must be a regular file"),
    "an endless device": ("png", lambda p: p.symlink_to("/dev/zero"), "must be a regular file"),
    "a link to nothing": ("png", lambda p: p.symlink_to("gone"), "No such file"),
    "a sparse file": (
        "png",
        lambda p: os.truncate(os.open(p, 65), 1 << 40),
        "as an image .cannot identify",
    ),
    "a PNG of too many pixels": ("png", png(14000, 14000), "exceeds limit"),
    "an animated PNG": ("png", pages("PNG"), "must hold one image"),
    "a TIFF": ("png", pages("TIFF"), "cannot identify"),
    "a cut PNG": ("png", png(8, 8)[:42], "cannot be read"),
    "a PNG with a changed bit": ("png", png(8, 8).replace(b"IDAT", b"IDAU"), "cannot be read"),
    "a cut JPEG": ("jpg", pages("JPEG")[:-200], "cannot be read"),
    "a cut BMP": ("bmp", pages("BMP")[:-9], "cannot be read"),
    "a cut WEBP": ("webp", pages("WEBP")[:-9], "cannot be read"),
    "a PNG of 16 bits": ("png", png(8, 8, 16, 2), "must have 8 bits"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture(tmp_path: Path, name: str) -> None:
    suffix, content, message = PICTURES[name]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    errors = (ValueError, OSError)
    assert str(path) in refuses(message, read_pictures, [path], size=8, error=errors)


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}\n"
ARRAYS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot be read"),
    "short": (npy_header(HEADER.format("|u1", "(9, 9)")), "cannot be read"),
    "a promise": (npy_header(HEADER.format("|u1", (1 << 60,))), "cannot be read"),
    "objects": (npy_header(HEADER.format("|O", (1,))) + b"N.", "pickle"),
    "a cut header": (npy_header("{'descr': '<f4', 'shape': (1,\n") + bytes(4), "cannot be read"),
    "brackets": (npy_header("(" * 9000), "cannot be read"),
    "an empty .npz": (b"PK\x05\x06" + bytes(18), "cannot be read"),
    "a changed magic word": (npy_header(HEADER.format("|u1", (2,)))[1:] + b"ab", "cannot be read"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_hostile_array(tmp_path: Path, name: str) -> None:
    """In a .npz, and as a .npy."""
    content, message = ARRAYS[name]
    npz, npy = tmp_path / "x.npz", tmp_path / "x.npy"
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    if content.startswith(b"\x93NUMPY"):  # numpy gives the bytes of other members
        assert str(npz) in refuses(message, read_npz, npz)
    npy.write_bytes(content)
    refuses(f"{npy} cannot be read as a .npy without pickled", read_images, npy)


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        write_images(folder, {f"{i}.png": random_bytes((8, 8), seed=i) for i in range(5)})
        for i in range(5):
            os.rename(folder / f"{i}.png", os.fsencode(folder) + b"/%d\xff.png" % i)
    except OSError:
        pytest.skip("this file system takes only names of UTF-8")
    whole = load_dataset("folder", "all", folder)
    assert len(whole) == 5
    whole.source.encode()
    assert r"caf\xe9" in whole.source
    Path(os.fsdecode(os.fsencode(folder) + b"/3\xff.png")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"caf\\xe9/3\\xff.png cannot be read") as error:
        load_dataset("folder", "all", folder)
    str(error.value).encode()


def test_pages_of_another_picture_after_a_jpeg_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(pages("MPO"))
    images = read_pictures([path], size=8)
    assert images.shape == (1, 3, 8, 8)
    assert (images.int() - 3).abs().max() <= 2
