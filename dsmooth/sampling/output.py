"""Draw the images of a request on all processes, into a file or a folder that can be extended."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from ..config import Classes
from ..distributed import distributed_map, gather_results, rank_and_size
from ..files import file_sha256, lock_folder, write_atomically, write_npz
from ..pictures import is_diverged, nhwc_bytes, png
from ..progress import Progress, part_of
from ..record import Record, read_parts
from ..runs import RunFolder
from .request import Request

T = TypeVar("T")
LEAST_BYTES = 67  # of an image: a PNG of one pixel
# Draws a part of a request, (count, C, H, W).
DrawPart = Callable[[Request, Progress], Tensor]


def on_cpu(_: Request, images: Tensor) -> Tensor:
    """Keep drawn images in the CPU's memory."""
    return images.cpu()


def draw_parts(
    draw: DrawPart,
    parts: Sequence[Request],
    keep: Callable[[Request, Tensor], T],
    progress: Progress | None = None,
    done: int = 0,
) -> Iterator[T]:
    """Draw parts on all ranks; only rank 0 yields keep(part, images) of each part, in order.

    All processes of a `process_group` call this. progress: called with the number of images done,
    starting at `done`.
    """
    rank, size = rank_and_size()
    for first in range(0, len(parts), size):
        turn = parts[first : first + size]  # the processes draw them at the same time
        last = done + sum(part.count for part in turn)
        kept = None
        if rank < len(turn):
            report = part_of(progress, done, last)
            images = draw(turn[rank], report)
            report(1.0)
            kept = keep(turn[rank], images)
        yield from gather_results(kept, to_all=False)[: len(turn)]
        done = last


def write_images(path: Path, x: Tensor, request: Request, classes: Classes) -> None:
    """Write the images x (N, C, H, W) of a request as one compressed .npz, with seed and labels.

    classes: of the models; the labels are stored as `label`, with the names of the classes.
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(request.seed),
        "first_index": np.int64(request.first_index),
    }
    labels = request.labels(classes)
    if labels is not None:
        arrays["label"] = labels.numpy(force=True)
        if classes.names:
            arrays["class_names"] = np.array(classes.names)
    write_npz(path, arrays)


def write_adm_npz(path: Path, x: Tensor) -> None:
    """Write the finite images of x (N, C, H, W) as uint8 RGB, the format of ADM
    (guided-diffusion)."""
    pixels = nhwc_bytes(x[~is_diverged(x)])
    write_npz(path, {"arr_0": pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels})


def fill(
    folder: Folder, draw: DrawPart, chunk: int, progress: Progress | None = None
) -> tuple[int, int]:
    """Draw the images that are missing in a folder; each process writes the files that it draws.

    All processes of a `process_group` call this. Returns the number of drawn images, and how many
    of them diverged.
    """
    rank, size = rank_and_size()
    holder = "another process that draws into it"
    with lock_folder(folder.path, holder) if rank == 0 else nullcontext():
        (missing,) = distributed_map([folder], type(folder).missing)  # found by rank 0
        parts = folder.parts(missing, chunk, size)
        drawn, diverged = sum(part.count for part in parts), 0
        before = folder.request.count - drawn
        if progress is not None:
            progress(before)
        for digests, lost in draw_parts(draw, parts, folder.keep, progress, before):
            folder.enter(digests)
            diverged += lost
    return drawn, diverged


class Folder:
    """The images of a request in numbered files of `size` images, each written atomically.

    description: everything that determines the images except their indices, as JSON. The record
    lists the files with their digests, "" for a file to draw.
    """

    manifest: ClassVar[str]
    filename: ClassVar[str]  # format string: of a file's number, or an image's index
    pattern: ClassVar[str]
    size: ClassVar[int]

    def __init__(
        self,
        path: Path,
        request: Request,
        image_shape: tuple[int, ...],
        description: Mapping[str, object],
    ) -> None:
        self.path, self.request = path, request
        self.description = {
            **description,
            "first_index": request.first_index,
            "image_shape": image_shape,
            "shard_size": self.size,
            "count": request.count,
        }

    @staticmethod
    def encode(images: Tensor) -> bytes:
        """The content of a file of images (N, C, H, W)."""
        raise NotImplementedError

    def file(self, number: int) -> Path:
        """The path of a file."""
        index = self.request.first_index + number
        return self.path / self.filename.format(number=number, index=index)

    def missing(self) -> list[int]:
        """Numbers of the files to draw, including a file that now has more images.

        Raises ValueError for a folder with other content, and for files that were changed.
        """
        record = self._open_record()
        n, size, digests = self.request.count, self.size, record.parts
        before, files = int(record.earlier.get("count", 0)), -(-n // size)
        if before > n and size > 1:
            raise ValueError(
                f"{self.path} holds a drawing of {before} images: ask for {before} or more, not {n}"
            )
        needed, free = (n - before) * LEAST_BYTES, shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"{n - before:,} images take {needed:,} bytes or more, but {self.path} has {free:,}"
            )
        for file in map(self.file, range(min(files, len(digests)))):
            if size == 1 and not file.exists():
                digests[file.name] = ""
            elif digests[file.name]:
                check_file(file, digests[file.name])
        names = [self.file(number).name for number in range(files)]
        if before < n:
            if before % size:
                digests[names[before // size]] = ""  # its file will have more images
            record.keep({name: digests.get(name, "") for name in names})
        return [number for number, name in enumerate(names) if not digests[name]]

    def parts(self, missing: list[int], chunk: int, ranks: int) -> list[Request]:
        """The missing files in parts of about `chunk` images, smaller if some rank would get
        none."""
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

    def keep(self, part: Request, images: Tensor) -> tuple[dict[str, str], int]:
        """Write a part's images (N, C, H, W). Returns digests by file, and how many diverged."""
        digests = {}
        first = (part.first_index - self.request.first_index) // self.size
        for number, x in enumerate(images.detach().float().cpu().split(self.size), first):
            content, file = self.encode(x), self.file(number)
            write_atomically(file, content)
            digests[file.name] = hashlib.sha256(content).hexdigest()
        return digests, int(is_diverged(images).sum())

    def enter(self, digests: Mapping[str, str]) -> None:
        """Add files to the record; after a crash files that are not in it are drawn again."""
        if not all((self.path / name).exists() for name in digests):
            raise ValueError(f"{self.path} must be a folder that all machines share")
        self.record.keep(digests)

    def _open_record(self) -> Record[None, str]:
        """Open `self.record`. Raises the errors of `missing`."""
        path = self.path / self.manifest
        if RunFolder(self.path).config.exists():
            raise ValueError(f"{self.path} is the folder of a run or a pair: choose another one")
        for kind in (Shards, Pictures):
            if kind.manifest != self.manifest and (self.path / kind.manifest).exists():
                raise ValueError(f"{self.path} holds {kind.pattern}: choose another folder")
        if path.exists():
            read_digests(path, type(self))
        elif any(self.path.glob(self.pattern)):
            raise ValueError(
                f"{self.path} holds {self.pattern} without {self.manifest}: choose another folder"
            )
        self.record = record = Record(path, self.description, type(None), str, free=["count"])
        count = max(self.request.count, record.earlier.get("count", 0))
        record.request = {**record.request, "count": count}
        return record


class Shards(Folder):
    """Files shard_00000.npy, ..., float32 (size, C, H, W); the last one has the rest."""

    manifest = "shards.json"
    filename, pattern = "shard_{number:05d}.npy", "shard_*.npy"
    size = 128

    @staticmethod
    def encode(images: Tensor) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(images.numpy(), "<f4"))
        return buffer.getvalue()


class Pictures(Folder):
    """PNG files of one image each, 8 bits per channel; 00000000.png is image 0.

    Diverged images are grey.
    """

    manifest = "images.json"
    filename, pattern = "{index:08d}.png", "*.png"
    size = 1

    @staticmethod
    def encode(images: Tensor) -> bytes:
        return png(nhwc_bytes(images)[0])


def check_file(path: Path, digest: str) -> None:
    """Raise ValueError unless the file's SHA-256 is `digest`."""
    if file_sha256(path) != digest:
        raise ValueError(
            f"{path} does not hold the images that were drawn into it: remove its folder to draw "
            "again"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError unless a folder with a record has all its files, unchanged."""
    for kind in (Shards, Pictures):
        if (folder / kind.manifest).exists():
            digests = read_digests(folder / kind.manifest, kind)
            if not all(digests.values()):
                raise ValueError(
                    f"{folder} is unfinished: repeat the command that draws it to resume"
                )
            for name, digest in digests.items():
                check_file(folder / name, digest)


def read_digests(path: Path, kind: type[Folder]) -> dict[str, str]:
    """Digests by file in a folder's record. Raises ValueError if they are not its images."""
    request, digests = read_parts(path, str)
    count, size, first = (request.get(name) for name in ("count", "shard_size", "first_index"))
    if isinstance(count, int) and isinstance(size, int) and isinstance(first, int) and size > 0:
        numbers = range(len(digests))
        names = [kind.filename.format(number=i, index=first + i) for i in numbers]
        if len(digests) == -(-count // size) and names == [*digests]:
            return digests
    raise ValueError(f"{path} is damaged: it does not list the files of its images")
