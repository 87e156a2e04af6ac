"""Parts that several verbs share: the choice of data and devices, checks of outputs, drawing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path

import torch
from torch import Tensor

from .._extension import is_available
from ..cuda import cuda_obstacle
from ..data import ImageDataset, load_dataset
from ..distributed import from_first
from ..fields import SettingError
from ..files import check_writable, suffix_of
from ..machine import choose_device, use_threads
from ..pretrained import Loaded
from ..pretrained.runs import Start
from ..progress import LOG
from ..sampling.known import KnownPixels
from ..sampling.request import Label, Request, check_guidance, default_label, drawn_seed
from .options import Computing, DataOptions, Drawing


@dataclass(frozen=True)
class DataChoice:
    """The arguments of `load_dataset` for a data set; of the split, the one to measure.

    measured: "test", or "all" where the models were not trained on the folder of images.
    held_out_sha256: of the images that the training held out, if its run knows.
    """

    name: str
    data_dir: str | None
    image_size: int | None
    measured: str = "test"
    held_out_sha256: str | None = None

    def load(self, split: str | None = None, limit: int | None = None) -> ImageDataset:
        """The images of a split, or the first `limit`, showing how many files are decoded.

        Raises ValueError for held-out images that are not those of the training.
        """
        split, size = split or self.measured, self.image_size
        images = load_dataset(self.name, split, self.data_dir, image_size=size)
        digest = replace(images, labels=None).digest
        if split == "test" and self.held_out_sha256 not in (None, digest):
            raise ValueError(
                f"the held-out images of {self.data_dir} are not those of the training: files were "
                "renamed, added or removed, and some of these may have been trained on. To measure "
                "all images, copy them to another folder and name it by --data-dir"
            )
        return images.first(limit)


def choose_data(models: Loaded | None, options: DataOptions) -> DataChoice:
    """The data set of the options, else the one that the models were trained on.

    A run knows its folder too. Without models it is mnist. Raises SettingError where runs of
    different data leave the choice open.
    """
    name, image_size = options.data, options.image_size
    folder = None if options.data_dir is None else realpath(options.data_dir)
    runs = () if models is None else models.runs.values()
    trained = {run: run.read_config()[0] for run in runs}
    trained = {run: s for run, s in trained.items() if s.data == (name or s.data)}
    places = {(s.data, folder or realpath(s.data_dir or "")): s for s in trained.values()}
    if len(places) > 1:
        first, other = (f"{s.data} {s.data_dir or ''}".strip() for s in [*places.values()][:2])
        differ = "data" if len({data for data, _ in places}) > 1 else "data_dir"
        raise SettingError(
            (),
            f"the models were trained on different data, {first} and {other}: to say which images "
            "to take, set",
            **{differ: None},
        )
    known = [run for run, s in trained.items() if folder in (None, realpath(s.data_dir or ""))]
    data_dir = None if options.data_dir is None else str(options.data_dir)
    for settings in [*trained.values()][:1]:
        name, data_dir = settings.data, data_dir or settings.data_dir
        image_size = image_size or settings.image_size
    if name is None:
        networks = models.networks.values() if models is not None else ()
        records = (network.record for network in networks)
        name = next((record.data for record in records if record is not None), "mnist")
    if name != "folder":
        return DataChoice(name, data_dir, image_size)
    starts = (
        entry
        for run in known
        if image_size == trained[run].image_size and run.log.is_file()
        for entry in run.read_log()
        if isinstance(entry, Start)
    )
    held_out = next((entry.held_out_sha256 for entry in starts), None)
    return DataChoice(name, data_dir, image_size, "test" if known else "all", held_out)


def request_of(
    models: Loaded,
    drawing: Drawing,
    count: int,
    first_index: int = 0,
    known: KnownPixels | None = None,
    own_labels: Tensor | None = None,
) -> Request:
    """The request of a command's options. Raises ValueError for options that do not fit.

    own_labels: of the images of known pixels, in place of the option's.
    """
    if [*models.networks] == ["denoiser"]:
        raise ValueError("a denoiser draws given noisy images: name the run of its noisy model too")
    if "denoiser" not in models.networks:
        # A single noisy model draws x~, as a pair does with the method "noisy".
        methods = ("two-step", "noisy") if "noisy" in models.networks else ("two-step",)
        if drawing.method not in methods:
            raise ValueError("--method is for a pair, not for a single model: leave it out")
    label: Label = drawing.label if own_labels is None else own_labels
    if label is None:
        label = default_label(models.classes, given=known is not None)
    request = Request(
        count,
        from_first(drawn_seed) if drawing.seed is None else drawing.seed,
        first_index,
        drawing.method,
        drawing.temperature,
        known,
        label,
        drawing.guidance,
    )
    # Refused before any work.
    request.labels(models.classes)
    if request.guidance:
        for network in models.networks.values():
            check_guidance(network.config)
    return request


def say_drawn(drawn: int, diverged: int, started: float, *, existing: int = 0) -> None:
    """Print how many images were drawn, how fast, and how many diverged; ValueError if all did.

    started: when, by time.monotonic(). existing: number of images found in the folder.
    """
    seconds = time.monotonic() - started
    before = f" ({existing:,} already existed)" if existing else ""
    rate = f" ({drawn / seconds:.2f} img/s)" if drawn else ""
    print(f"{drawn:,} image{'s' * (drawn != 1)} in {seconds:.1f} s{rate}{before}")
    line = f"{diverged:,} of {drawn:,} images diverged, which happens with a hardly trained model"
    if diverged and diverged == drawn:
        raise ValueError(f"{line}: train longer")
    if diverged:
        print(f"{line}: they are grey in pictures and not finite in arrays")


def check_outputs(outputs: Sequence[Path]) -> None:
    """Raise ValueError for files that `sample` cannot write images to."""
    if not outputs:
        raise ValueError("--out must name a file or a folder")
    for path in outputs:
        if not suffix_of(path) and len(outputs) > 1:
            raise ValueError(f"a folder must be the only --out, got {path} among others")
        if suffix_of(path) not in ("", ".png", ".npz") or path.name == "-":
            raise ValueError(
                f"--out must end in .png or .npz, or be a folder without a suffix, got {path}"
            )
        check_writable(path)


def drawing_device(options: Computing) -> torch.device:
    """Set threads, and choose the device that draws.

    By default that is a GPU only if the cached sampler runs there. Else images need many forward
    passes each.
    """
    use_threads(options.threads)
    device = choose_device(options.device)
    undecided = options.device == "auto" and device.type != "cpu" and is_available()
    if undecided and (reason := cuda_obstacle(device)) is not None:
        LOG.info("drawing on the CPU: %s; --device %s draws pixel by pixel", reason, device)
        return torch.device("cpu")
    return device
