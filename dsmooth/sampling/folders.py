"""Folders of images, which several processes fill and which go on."""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..distributed import distributed_map, process_group, rank_and_size
from ..fields import difference, structure
from ..files import file_sha256, lock_folder, read_json, write_atomically, write_json
from ..pictures import is_diverged, nhwc_bytes, png
from ..runs import RunFolder
from .output import DrawPart, draw_parts
from .request import Progress, Request


class Filled(NamedTuple):
    """Numbers of images: in the folder before, drawn by this call, and diverged among these."""

    before: int
    drawn: int
    diverged: int


def fill(folder: Folder, draw: DrawPart, chunk: int, progress: Progress | None = None) -> Filled:
    """Draw the images that a folder lacks; each process writes the files that it draws."""
    rank, size = rank_and_size()
    holder = "another process that draws into it"
    with process_group(), lock_folder(folder.path, holder) if rank == 0 else nullcontext():
        (missing,) = distributed_map([folder], type(folder).missing)  # which rank 0 looks up
        parts = folder.parts(missing, chunk, size)
        drawn = sum(part.count for part in parts)
        before, diverged = folder.request.count - drawn, 0
        if progress is not None:
            progress(before)
        results = draw_parts(draw, parts, folder.keep, progress, before)
        for part, (digests, lost) in zip(parts, results, strict=rank == 0):
            folder.record(part, digests)
            diverged += lost
    return Filled(before, drawn, diverged)


@dataclass
class Manifest:
    """The drawing of a folder, and the SHA-256 of each of its files; None for a missing one."""

    description: dict[str, Any]
    first_index: int
    image_shape: list[int]
    shard_size: int = 1
    n: int = 0
    sha256: list[str | None] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must match for a folder to be continued."""
        names = ("first_index", "image_shape", "shard_size")
        return {**self.description, **{name: getattr(self, name) for name in names}}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest. Raises ValueError, naming the file, if it is damaged."""
        values = read_json(path)
        try:
            manifest = structure(values, cls)
            files = len(manifest.sha256)
            if manifest.shard_size < 1 or files != -(-manifest.n // manifest.shard_size):
                raise ValueError(f"it lists {files} files of {manifest.n} images")
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return manifest


class Folder:
    """The images of a request in numbered files of `size` images, each written whole or not at all.

    description: all that decides the images beside their numbers, as JSON. drawing: the manifest.
    """

    manifest: ClassVar[str]
    filename: ClassVar[str]  # of a file by its number; of a picture by its image's index
    pattern: ClassVar[str]
    size = 1

    def __init__(
        self,
        path: Path,
        request: Request,
        image_shape: Sequence[int],
        description: Mapping[str, Any] | None = None,
        size: int | None = None,
    ) -> None:
        self.path, self.request, self.size = path, request, size or self.size
        shape = list(image_shape)
        self.drawing = Manifest(dict(description or {}), request.first_index, shape, self.size)

    @staticmethod
    def encode(images: Tensor) -> bytes:
        """The content of a file of images (N, C, H, W)."""
        raise NotImplementedError

    def file(self, number: int) -> Path:
        """The path of a file."""
        index = self.request.first_index + number
        return self.path / self.filename.format(number=number, index=index)

    def missing(self) -> list[tuple[int, int]]:
        """Spans (first, end) of images to draw, one for each file that lacks some.

        Raises ValueError for a folder of something else, and for files that were changed.
        """
        self._read_manifest()
        n, size = self.request.count, self.size
        before, digests = self.drawing.n, self.drawing.sha256
        if before > n and size > 1:
            raise ValueError(
                f"{self.path} holds a drawing of {before} images: ask for {before} or more, not {n}"
            )
        needed, free = (n - before) * self._least_bytes(), shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"{n - before:,} images take {needed:,} bytes or more, and {self.path} has {free:,}"
            )
        spans = []
        for number, digest in enumerate(digests[: -(-n // size)]):
            if digest is None or (size == 1 and not self.file(number).exists()):
                spans.append((number * size, min((number + 1) * size, n)))
            else:
                check_file(self.file(number), digest)
        if before < n:
            if before % size and digests[-1] is not None:
                digests[-1] = None  # its file is written anew, with the images that it has
                spans.append((before, min(-(-before // size) * size, n)))
            firsts = range(len(digests) * size, n, size)
            spans += [(first, min(first + size, n)) for first in firsts]
            digests += [None] * len(firsts)
            self._write_manifest()
        return spans

    def _least_bytes(self) -> int:
        """Bytes of an image at least."""
        raise NotImplementedError

    def parts(self, missing: list[tuple[int, int]], chunk: int, ranks: int) -> list[Request]:
        """The missing files in parts of about `chunk` images, smaller if a rank would get none."""
        most = self.size * max(1, min(chunk // self.size, -(-len(missing) // ranks)))
        spans: list[tuple[int, int]] = []
        for first, end in missing:
            if spans and spans[-1][1] == first and end - spans[-1][0] <= most:
                first = spans.pop()[0]
            spans.append((first, end))
        return [self.request.part(first, end - first) for first, end in spans]

    def keep(self, part: Request, images: Tensor) -> tuple[list[str], int]:
        """Write a part's images (N, C, H, W); the digests of its files, how many diverged."""
        x = images.detach().float().cpu()
        first, kept = divmod(part.first_index - self.request.first_index, self.size)
        if kept:  # images that the first file has already
            x = torch.cat([torch.from_numpy(np.load(self.file(first))[:kept]), x])
        digests = []
        for number, images_of_file in enumerate(x.split(self.size), first):
            content = self.encode(images_of_file)
            write_atomically(self.file(number), content)
            digests.append(hashlib.sha256(content).hexdigest())
        return digests, int(is_diverged(images).sum())

    def record(self, part: Request, digests: list[str]) -> None:
        """Enter the files of a part in the manifest; after a crash the others are drawn again."""
        first = (part.first_index - self.request.first_index) // self.size
        for number, digest in enumerate(digests, first):
            if not self.file(number).exists():
                raise ValueError(f"{self.path} must be a folder that all machines share")
            self.drawing.sha256[number] = digest
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.drawing.n = len(self.drawing.sha256) if self.size == 1 else self.request.count
        write_json(self.path / self.manifest, asdict(self.drawing))

    def _read_manifest(self) -> None:
        """Read `drawing`, if the folder has one. Raises as `missing` does."""
        path = self.path / self.manifest
        if RunFolder(self.path).config.exists():
            raise ValueError(f"{self.path} is the folder of a run or a pair: choose another one")
        for kind in Folder.__subclasses__():
            if kind.manifest != self.manifest and (self.path / kind.manifest).exists():
                raise ValueError(f"{self.path} holds {kind.pattern}: choose another folder")
        if not path.exists():
            if any(self.path.glob(self.pattern)):
                raise ValueError(
                    f"{self.path} holds {self.pattern} without {self.manifest}: choose another "
                    "folder"
                )
            return
        drawing = Manifest.read(path)
        if other := difference(drawing.settings, self.drawing.settings):
            raise ValueError(f"{self.path} holds another drawing: {other}; choose another folder")
        self.drawing = drawing


class Shards(Folder):
    """Files shard_00000.npy, ..., float32 (size, C, H, W), the last one with the rest."""

    manifest = "shards.json"
    filename, pattern = "shard_{number:05d}.npy", "shard_*.npy"
    size = 128

    @staticmethod
    def encode(images: Tensor) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(images.numpy(), "<f4"))
        return buffer.getvalue()

    def _least_bytes(self) -> int:
        return 4 * math.prod(self.drawing.image_shape)


class Pictures(Folder):
    """PNG files of one image, 8 bits a channel, named after its number: 00000000.png is image 0.

    Images that diverged are grey.
    """

    manifest = "images.json"
    filename, pattern = "{index:08d}.png", "*.png"

    @staticmethod
    def encode(images: Tensor) -> bytes:
        return png(nhwc_bytes(images)[0])

    def _least_bytes(self) -> int:
        return 67  # of a PNG of one pixel


def check_file(path: Path, digest: str) -> None:
    """Raise ValueError unless a file has that SHA-256."""
    if file_sha256(path) != digest:
        raise ValueError(
            f"{path} does not hold the images that were drawn into it: remove its folder to draw "
            "again"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError unless a folder with a manifest holds all of its files, unchanged."""
    for kind in (Shards, Pictures):
        if not (folder / kind.manifest).exists():
            continue
        drawing = Manifest.read(folder / kind.manifest)
        if None in drawing.sha256:
            raise ValueError(f"{folder} is unfinished: repeat the command that draws it to go on")
        for number, digest in enumerate(drawing.sha256):
            name = kind.filename.format(number=number, index=drawing.first_index + number)
            check_file(folder / name, str(digest))
