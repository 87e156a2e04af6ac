"""The images of a request, drawn by all processes, and into a file or a folder that goes on."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..distributed import distributed_map, process_group, rank_and_size
from ..fields import Json, difference, structure
from ..files import file_sha256, lock_folder, read_json, write_atomically, write_json, write_npz
from ..pictures import is_diverged, nhwc_bytes, png
from ..runs import RunFolder
from .request import Progress, Request

T = TypeVar("T")
LEAST_BYTES = 67  # of an image: a PNG of one pixel
# Draws a part of a request, (count, C, H, W).
DrawPart = Callable[[Request, Progress], Tensor]


def draw_parts(
    draw: DrawPart,
    parts: list[Request],
    keep: Callable[[Request, Tensor], T],
    progress: Progress | None = None,
    done: int = 0,
) -> Iterator[T]:
    """Draw parts on all ranks; rank 0 alone yields keep(part, images) of each, in order.

    progress: called with the number of images so far, `done` before the first.
    """
    size = rank_and_size()[1]
    starts = list(accumulate((part.count for part in parts), initial=done))

    def work(number: int) -> T:
        # The other processes draw the parts behind this one meanwhile.
        first, last = starts[number], starts[min(number + size, len(parts))]

        def report(fraction: float) -> None:
            if progress is not None:
                progress(first + fraction * (last - first))

        images = draw(parts[number], report)
        report(1.0)
        return keep(parts[number], images)

    with process_group():
        yield from distributed_map(range(len(parts)), work, to_all=False)


def gather(
    draw: DrawPart, request: Request, chunk: int, progress: Progress | None = None
) -> Tensor | None:
    """The images of a request on the CPU, None at other ranks than 0; `chunk` at a time at most."""
    chunk = min(chunk, -(-request.count // rank_and_size()[1]))
    parts = list(draw_parts(draw, request.parts(chunk), lambda _, x: x.cpu(), progress))
    return torch.cat(parts) if parts else None


def write_images(path: Path, x: Tensor, request: Request, *, n_classes: int = 0) -> None:
    """Write the images x (N, C, H, W) of a request as one compressed .npz, with seed and labels.

    n_classes: of the models, whose labels are kept as `label`.
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(request.seed),
        "first_index": np.int64(request.first_index),
    }
    labels = request.labels(n_classes)
    if labels is not None:
        arrays["label"] = labels.numpy(force=True)
    write_npz(path, arrays)


def write_adm_npz(path: Path, x: Tensor) -> None:
    """Write the finite images of x (N, C, H, W) as uint8 RGB, the form that ADM
    (guided-diffusion) reads."""
    pixels = nhwc_bytes(x[~is_diverged(x)])
    write_npz(path, {"arr_0": pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels})


def fill(
    folder: Folder, draw: DrawPart, chunk: int, progress: Progress | None = None
) -> tuple[int, int]:
    """Draw the images that a folder lacks; each process writes the files that it draws.

    Returns how many were drawn, and how many of these diverged.
    """
    rank, size = rank_and_size()
    holder = "another process that draws into it"
    with process_group(), lock_folder(folder.path, holder) if rank == 0 else nullcontext():
        (missing,) = distributed_map([folder], type(folder).missing)  # which rank 0 looks up
        parts = folder.parts(missing, chunk, size)
        drawn, diverged = sum(part.count for part in parts), 0
        before = folder.request.count - drawn
        if progress is not None:
            progress(before)
        results = draw_parts(draw, parts, folder.keep, progress, before)
        for part, (digests, lost) in zip(parts, results, strict=rank == 0):
            folder.record(part, digests)
            diverged += lost
    return drawn, diverged


@dataclass
class Manifest:
    """The drawing of a folder, and the SHA-256 of each of its files; None for a missing one."""

    description: Json
    first_index: int
    image_shape: tuple[int, ...]
    shard_size: int = 1
    n: int = 0
    sha256: list[str | None] = field(default_factory=list)

    @property
    def settings(self) -> Json:
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
    size: ClassVar[int]

    def __init__(
        self,
        path: Path,
        request: Request,
        image_shape: tuple[int, ...],
        description: Json,
    ) -> None:
        self.path, self.request = path, request
        self.drawing = Manifest(description, request.first_index, image_shape, self.size)

    @staticmethod
    def encode(images: Tensor) -> bytes:
        """The content of a file of images (N, C, H, W)."""
        raise NotImplementedError

    def file(self, number: int) -> Path:
        """The path of a file."""
        index = self.request.first_index + number
        return self.path / self.filename.format(number=number, index=index)

    def missing(self) -> list[int]:
        """Numbers of the files to draw: a file of fewer images than now is drawn anew.

        Raises ValueError for a folder of something else, and for files that were changed.
        """
        self._read_manifest()
        n, size = self.request.count, self.size
        before, digests, files = self.drawing.n, self.drawing.sha256, -(-n // size)
        if before > n and size > 1:
            raise ValueError(
                f"{self.path} holds a drawing of {before} images: ask for {before} or more, not {n}"
            )
        needed, free = (n - before) * LEAST_BYTES, shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"{n - before:,} images take {needed:,} bytes or more, and {self.path} has {free:,}"
            )
        for number, digest in enumerate(digests[:files]):
            if size == 1 and not self.file(number).exists():
                digests[number] = None
            elif digest is not None:
                check_file(self.file(number), digest)
        if before < n:
            if before % size:
                digests[-1] = None  # its file gets more images
            digests += [None] * (files - len(digests))
            self._write_manifest()
        return [number for number, digest in enumerate(digests[:files]) if digest is None]

    def parts(self, missing: list[int], chunk: int, ranks: int) -> list[Request]:
        """The missing files in parts of about `chunk` images, smaller if a rank would get none."""
        most = max(1, min(chunk // self.size, -(-len(missing) // ranks)))
        runs: list[list[int]] = []
        for number in missing:
            if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < most:
                runs[-1].append(number)
            else:
                runs.append([number])
        firsts = [numbers[0] * self.size for numbers in runs]
        ends = [min((numbers[-1] + 1) * self.size, self.request.count) for numbers in runs]
        return [self.request.part(a, b - a) for a, b in zip(firsts, ends, strict=True)]

    def keep(self, part: Request, images: Tensor) -> tuple[list[str], int]:
        """Write a part's images (N, C, H, W); the digests of its files, how many diverged."""
        digests = []
        for number, x in enumerate(images.detach().float().cpu().split(self.size), self._of(part)):
            content = self.encode(x)
            write_atomically(self.file(number), content)
            digests.append(hashlib.sha256(content).hexdigest())
        return digests, int(is_diverged(images).sum())

    def record(self, part: Request, digests: list[str]) -> None:
        """Enter the files of a part in the manifest; after a crash the others are drawn again."""
        for number, digest in enumerate(digests, self._of(part)):
            if not self.file(number).exists():
                raise ValueError(f"{self.path} must be a folder that all machines share")
            self.drawing.sha256[number] = digest
        self._write_manifest()

    def _of(self, part: Request) -> int:
        """Number of the first file of a part."""
        return (part.first_index - self.request.first_index) // self.size

    def _write_manifest(self) -> None:
        self.drawing.n = len(self.drawing.sha256) if self.size == 1 else self.request.count
        write_json(self.path / self.manifest, asdict(self.drawing))

    def _read_manifest(self) -> None:
        """Read `drawing`, if the folder has one. Raises as `missing` does."""
        path = self.path / self.manifest
        if RunFolder(self.path).config.exists():
            raise ValueError(f"{self.path} is the folder of a run or a pair: choose another one")
        for kind in (Shards, Pictures):
            if kind.manifest != self.manifest and (self.path / kind.manifest).exists():
                raise ValueError(f"{self.path} holds {kind.pattern}: choose another folder")
        if not path.exists() and any(self.path.glob(self.pattern)):
            raise ValueError(
                f"{self.path} holds {self.pattern} without {self.manifest}: choose another folder"
            )
        drawing = Manifest.read(path) if path.exists() else self.drawing
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


class Pictures(Folder):
    """PNG files of one image, 8 bits a channel, named after its number: 00000000.png is image 0.

    Images that diverged are grey.
    """

    manifest = "images.json"
    filename, pattern = "{index:08d}.png", "*.png"
    size = 1

    @staticmethod
    def encode(images: Tensor) -> bytes:
        return png(nhwc_bytes(images)[0])


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
