"""What hostile and damaged files may do to the readers: nothing but an error that names the file.

Each fault here once ran a program, took gigabytes, waited for ever or ended in a traceback.
"""

from __future__ import annotations

import gzip
import os
import re
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.reader_faults import (
    EPS,
    Outcome,
    black_png,
    gzip_zeros,
    jpeg_of_scans,
    read_in_child,
    tar_member,
    tiff,
    webp_bomb,
)
from tests.faults.reader_mutants import foreign, subjects
from tests.helpers.data_makers import (
    idx_bytes,
    random_bytes,
    write_images,
    write_mnist,
)

MEMORY = 640 << 20  # what a hostile file may take here, three times over what the tiny sets take

Write = Callable[[Path], None]


def picture(content: bytes, name: str = "x.png") -> tuple[str, Write]:
    """A folder of one sound picture and one of this content."""

    def write(folder: Path) -> None:
        write_images(folder, {"a.png": random_bytes((8, 8))})
        (folder / name).write_bytes(content)

    return "folder", write


def special(make: Callable[[Path], object]) -> tuple[str, Write]:
    def write(folder: Path) -> None:
        write_images(folder, {"a.png": random_bytes((8, 8))})
        make(folder / "x.png")

    return "folder", write


def saved(name: str, array: np.ndarray, **options: object) -> tuple[str, Write]:
    """A picture that Pillow saves as `name`."""

    def write(folder: Path) -> None:
        from PIL import Image

        write_images(folder, {"a.png": random_bytes((8, 8))})
        more = [Image.fromarray(array ^ 255)] if options.pop("pages", False) else []
        several = {"save_all": True, "append_images": more} if more else {}
        Image.fromarray(array).save(folder / name, **several, **options)

    return "folder", write


def archive(content: bytes) -> tuple[str, Write]:
    name = "cifar-10-binary.tar.gz"
    return "cifar10", lambda folder: (folder / name).write_bytes(content) and None


def idx(content: bytes) -> tuple[str, Write]:
    def write(folder: Path) -> None:
        write_mnist(folder, 5)
        (folder / "train-images-idx3-ubyte").write_bytes(content)

    return "mnist", write


def npz(header: bytes, zeros: int = 0) -> tuple[str, Write]:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "subset.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for name in ("test_images.npy", "test_labels.npy"):
                with file.open(name, "w") as member:
                    member.write(header)
                    for _ in range(zeros >> 24):
                        member.write(bytes(1 << 24))

    return "npz", write


def listen(path: Path) -> None:
    # A socket's name may have 108 bytes, fewer than pytest's folders have.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def idx_header(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()


_LONG_NAME = tar_member("x", tarfile.GNUTYPE_LONGNAME, 4 << 30)
_MEMBER = "cifar-10-batches-bin/data_batch_1.bin"
_TAGS = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
_WIDE_TAGS = {258: (16, 16, 16), 262: 2, 277: 3}
_WIDE = np.zeros((8, 8, 3), np.uint8)

# name: (reader, writer of its folder), and what the message must say.
FAULTS: dict[str, tuple[tuple[str, Write], str]] = {
    "an EPS file, which Ghostscript runs": (picture(EPS), "x.png.*none of PNG"),
    "a GIF file": (saved("x.gif.png", _WIDE[..., 0], format="GIF"), "x.gif.png.*none of PNG"),
    "a named pipe": (special(os.mkfifo), "x.png must be a regular file, found a named pipe"),
    "a socket": (special(listen), "x.png must be a regular file, found a socket"),
    "an endless device": (special(lambda p: p.symlink_to("/dev/zero")), "x.png.*found a device"),
    "a folder": (special(Path.mkdir), "x.png must be a regular file, found a folder"),
    "a link to nothing": (special(lambda p: p.symlink_to("gone")), "x.png links to gone"),
    "a link to itself": (special(lambda p: p.symlink_to("x.png")), "x.png"),
    "a sparse file": (special(lambda p: os.truncate(os.open(p, 65), 1 << 40)), "x.png is too long"),
    "a PNG that Pillow warns of": (picture(black_png(9500, 9500)), "x.png is too large.*67108864"),
    "a PNG that Pillow refuses": (
        picture(black_png(20000, 20000)),
        "x.png is too large.*got 400000000",
    ),
    "a PNG of one long row": (picture(black_png(1 << 17, 8)), "x.png is too large.*8 x 131072"),
    "a WebP of 2 GiB": (picture(webp_bomb(16383), "x.webp"), "x.webp is too large.*16383"),
    "a TIFF of 4 GiB tiles": (
        picture(tiff({**_TAGS, 259: 8, 322: 1 << 16, 323: 1 << 16, 324: 8, 325: 64}), "x.tif"),
        "x.tif is too large.*65536 x 65536",
    ),
    "a TIFF of rare compression": (
        picture(tiff({**_TAGS, 259: 34925}), "x.tif"),
        "x.tif must be compressed by",
    ),
    "a BigTIFF": (picture(b"II+\0\x08" + bytes(99), "x.tif"), "x.tif is a BigTIFF"),
    "a PPM of comments": (
        picture(b"P2 8 8 255\n" + b"#\n" * (1 << 20), "x.pgm"),
        "x.pgm has too many comments",
    ),
    "a JPEG of scans": (picture(jpeg_of_scans(500), "x.jpg"), "x.jpg has 5.. scans"),
    "an animated PNG": (saved("x.png", _WIDE, pages=True), "x.png must hold one image"),
    "an animated WebP": (saved("x.webp", _WIDE, pages=True), "x.webp must hold one image"),
    "a TIFF of pages": (saved("x.tif", _WIDE, pages=True), "x.tif must hold one image"),
    "a TIFF of 16 bits": (
        picture(tiff({**_TAGS, **_WIDE_TAGS}), "x.tif"),
        "x.tif must have 8 bits",
    ),
    "a PNG of 16 bits": (picture(black_png(8, 8, 16, 2)), "x.png must have 8 bits"),
    "a PPM of 16 bits": (
        picture(b"P6 8 8 999\n" + bytes(384), "x.ppm"),
        "x.ppm must have 8 bits",
    ),
    "an IDX bomb": (
        idx(gzip.compress(idx_header(160, 4096, 4096)) + gzip_zeros(160 << 24)),
        "ubyte is too large: its header promises 160 x 4096 x 4096",
    ),
    "an IDX bomb behind a small header": (
        idx(gzip.compress(idx_bytes(random_bytes((5, 4, 4)))) + gzip_zeros(160 << 24)),
        "ubyte is too long.*found more",
    ),
    "an IDX file of empty members": (
        idx(gzip.compress(b"") * 100_000),
        "ubyte is not an IDX file.*an empty file",
    ),
    "an IDX file of no pixels": (idx(idx_header(5, 0, 0)), "ubyte must hold images"),
    "an archive with a long name": (
        archive(gzip.compress(_LONG_NAME) + gzip_zeros(1 << 30)),
        "tar.gz cannot be read as a .tar.gz.*decompresses to more than",
    ),
    "an archive bomb": (
        archive(gzip.compress(tar_member("x", tarfile.REGTYPE, 4 << 30)) + gzip_zeros(2 << 30)),
        "tar.gz cannot be read as a .tar.gz.*decompresses to more than",
    ),
    "an archive of links": (
        archive(gzip.compress(tar_member(_MEMBER, tarfile.SYMTYPE, 0, linkname="/etc/passwd"))),
        "tar.gz must hold .*data_batch_1.bin",
    ),
    "an archive of a large batch": (
        archive(gzip.compress(tar_member(_MEMBER, tarfile.REGTYPE, 4 << 30))),
        "tar.gz cannot be read|tar.gz must hold",
    ),
    "an archive of many members": (
        archive(gzip.compress(tar_member("x", tarfile.REGTYPE, 0) * 200_000)),
        "tar.gz must hold .*data_batch_1.bin",
    ),
    "a npz bomb": (
        npz(
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1024, 1024, 1024)}\n"),
            1 << 30,
        ),
        "subset.npz cannot be read.*promises 1073741824 bytes, at most",
    ),
    "a npz of objects": (
        npz(npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"N."),
        "subset.npz cannot be read",
    ),
    "a npz of brackets": (npz(npy_header("(" * 9000)), "subset.npz cannot be read"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Outcome]]:
    """Every fault, read in a child that finds a Ghostscript which leaves a mark."""
    root = tmp_path_factory.mktemp("faults")
    programs, folders = root / "programs", []
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {root / 'ran'}\n")
    (programs / "gs").chmod(0o755)
    for number, ((_, write), _) in enumerate(FAULTS.values()):
        folder = root / str(number)
        folder.mkdir()
        write(folder)
        folders.append(folder)
    readers = [reader for (reader, _), _ in FAULTS.values()]
    found = read_in_child(list(zip(readers, folders, strict=True)), programs)
    return dict(zip(FAULTS, zip(folders, found, strict=True), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_that_names_the_file(
    outcomes: dict[str, tuple[Path, Outcome]], name: str
) -> None:
    folder, outcome = outcomes[name]
    assert outcome.kind == "refused", outcome
    assert str(folder) in outcome.detail
    assert len(outcome.detail.splitlines()) <= 2
    assert re.search(FAULTS[name][1], outcome.detail), outcome.detail
    assert outcome.grown < MEMORY, outcome
    assert not (folder.parent / "ran").exists(), "a picture ran a program"


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        write_images(folder, {f"{i}.png": random_bytes((8, 8), seed=i) for i in range(5)})
        for i in range(5):
            os.rename(folder / f"{i}.png", os.fsencode(folder) + b"/%d\xff.png" % i)
    except OSError:
        pytest.skip("this file system takes only names of UTF-8")
    from dsmooth.data import SPLITS, load_dataset

    parts = [load_dataset("folder", split, folder) for split in SPLITS]
    assert sum(map(len, parts)) == 5
    for part in parts:
        part.source.encode()
        assert r"caf\xe9" in part.source
    Path(os.fsdecode(os.fsencode(folder) + b"/3\xff.png")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"caf\\xe9/3\\xff.png cannot be read") as error:
        load_dataset("folder", "train", folder)
    str(error.value).encode()


def test_pages_of_another_picture_after_a_jpeg_are_left_alone(tmp_path: Path) -> None:
    from PIL import Image

    from dsmooth.data import load_dataset

    first, second = (Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (3, 200))
    for name in "ab":
        first.save(tmp_path / f"{name}.jpg", format="MPO", save_all=True, append_images=[second])
    images = load_dataset("folder", "train", tmp_path).images
    assert images.shape == (1, 1, 8, 8)
    assert (images.int() - 3).abs().max() <= 2


@pytest.mark.budget(60)
def test_damaged_files_are_refused_or_read_as_promised(tmp_path: Path) -> None:
    everything = subjects()
    files = [(s, c) for seed, s in enumerate(everything) for c in s.contents(seed)]
    files += foreign(everything)
    folders = [tmp_path / str(number) for number in range(len(files))]
    for (subject, content), folder in zip(files, folders, strict=True):
        subject.write(folder, content)
    jobs = [(subject.reader, folder) for (subject, _), folder in zip(files, folders, strict=True)]
    refused, sound = 0, {subject: subject for subject in everything}
    for (subject, _), folder, outcome in zip(files, folders, read_in_child(jobs), strict=True):
        if sound.pop(subject, None):  # the first of each is whole
            assert outcome.kind == "images", (subject.name, outcome)
        assert outcome.kind in ("images", "refused"), (subject.name, folder, outcome)
        if outcome.kind == "refused":
            refused += 1
            assert str(folder) in outcome.detail, outcome
            assert len(outcome.detail.splitlines()) <= 2, outcome
        else:
            assert re.fullmatch(subject.promise, outcome.detail), (subject.name, outcome)
        assert outcome.grown < MEMORY, (subject.name, folder, outcome)
    assert refused > len(files) // 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,\n") + bytes(4),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"N.",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9)}\n") + bytes(4),
        npy_header("(" * 9000),
        b"PK\x05\x06" + bytes(18),  # an empty .npz
    ],
)
def test_a_damaged_npy_is_one_error(tmp_path: Path, content: bytes) -> None:
    from dsmooth.evaluate.sources import read_images

    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy cannot be read as a \.npy without pickled"):
        read_images(tmp_path / "x.npy")
