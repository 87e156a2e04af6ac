"""The only place that completes or replaces the settings of a run.

Afterwards they are fixed, but for the number of images of a run with a budget (`Deadline`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from ..config import ModelConfig, TrainConfig
from ..data import ImageDataset
from ..distributed import all_same, broadcast_int, rank_and_size
from ..errors import SettingError
from ..machine import has_fast_bfloat16
from ..nn import PixelCNNpp
from ..progress import LOG
from .beginning import initial_network
from .budget import Deadline, images_within_budget
from .checkpoint import Checkpoint, differences
from .step import total_images

# Reads the training and the held-out images of a run.
LoadImages = Callable[[TrainConfig], tuple[ImageDataset, ImageDataset]]


@dataclass(frozen=True)
class RunRequest:
    """The settings that a user wants, before images, device and checkpoint complete them.

    start: settings of a preset, a file or a run. given, model: settings, and those of the network,
    that replace those of the start. rgb: the start for RGB images. match_channels: take the
    network's image_channels from the images. force: change settings of a run that has begun.
    """

    start: TrainConfig
    given: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    rgb: TrainConfig | None = None
    match_channels: bool = False
    force: bool = False

    def config(self, channels: int | None = None) -> TrainConfig:
        """The settings for images of so many channels, None while that is unknown."""
        start = self.rgb if self.rgb is not None and channels == 3 else self.start
        values = {**vars(start), **self.given}
        model = dict(self.model)
        if self.match_channels and channels is not None:
            model["image_channels"] = channels
            if channels != 1 and model.get("atoms", start.model.atoms) == "all":
                # Colour has no atom for every byte; with features and without those atoms its
                # networks are worse (docs/experiments/013-bytes.md).
                model |= {"atoms": (), "fourier_features": 0}
        if "classes" in self.given:  # the images decide which
            model["classes"] = None
        network = replace(start.model, **model)
        # A run that is resumed has its own schedule.
        given = {**self.given, "schedule_from": 0, "model": network}
        if values["images"] != start.images:
            given["earlier_images"] = ()
        return replace(start, **given)


class Resolved(NamedTuple):
    """The settings of a run and its images.

    initial: the network that a new run begins with, if any. deadline: for a new run with a budget.
    """

    config: TrainConfig
    train_set: ImageDataset
    test_set: ImageDataset
    initial: PixelCNNpp | None
    deadline: Deadline | None


def resolve(
    request: RunRequest,
    load: LoadImages,
    device: torch.device,
    started: float,
    checkpoint: Checkpoint | None = None,
) -> Resolved:
    """Complete the settings of a new run, or of one that continues from a checkpoint.

    The checkpoint decides what the request leaves open. The images, which `load` reads, decide the
    channels and the classes, the device the precision; the speed of this machine turns a budget of
    minutes into a number of images. All processes call this. Raises ValueError or FileNotFoundError
    for what does not fit, before the images are read if they are not to blame. started: when a
    budget began, by time.monotonic().
    """
    config = request.config()
    if checkpoint is not None:
        config = request.config(checkpoint.settings.model.image_channels)
        config = resume_settings(config, checkpoint, force=request.force)
    train_set, test_set = load(config)
    check_same(train_set, test_set)
    if checkpoint is None:
        config = request.config(test_set.image_channels)
    check_channels(config, test_set)
    precision = config.precision
    if precision == "auto":
        fast = broadcast_int(has_fast_bfloat16(device))  # machines may differ
        precision = "bfloat16" if fast else "float32"
    model = with_classes(config, train_set, test_set)
    config = replace(config, model=model, precision=precision)
    initial = initial_network(config) if checkpoint is None else None
    deadline = None
    if config.images is None:
        images, evaluations, deadline = images_within_budget(
            config, train_set, test_set, device, started
        )
        config = replace(config, images=images, evaluations=evaluations)
    return Resolved(config, train_set, test_set, initial, deadline)


def resume_settings(
    config: TrainConfig, checkpoint: Checkpoint, *, force: bool = False
) -> TrainConfig:
    """Settings of a resumed run: the user's, with what they leave open from the checkpoint.

    A finished run can be extended: its schedule restarts. Changing an unfinished run, or another
    setting, needs `force`. Raises ValueError without it, and for settings of another run. Where
    nothing is left to train no setting changes.
    """
    stored, seen, folder = checkpoint.settings, checkpoint.images_seen, checkpoint.path.parent
    before = total_images(stored)
    images = config.images or before  # a budget has become a number of images
    if continues(config, stored) or continues(stored, config):
        images = before  # the settings and the checkpoint are of two moments of the run
    if images < min(seen, before):
        raise SettingError("images", f"must be at least {seen:,}, which {folder} has seen")
    if config.budget not in (None, stored.budget):
        raise SettingError(
            "budget",
            f"is for a new run, and {folder} is one of {before:,} images: to extend it, set",
            images=None,
        )
    extended, model = before <= seen < images, config.model
    if config.classes and model.classes is None:
        model = replace(model, classes=stored.model.classes)
    config = replace(
        config,
        model=model,
        images=images,
        budget=stored.budget,
        earlier_images=stored.earlier_images,
        schedule_from=seen if extended else stored.schedule_from,
        evaluations=config.evaluations if config.images else stored.evaluations,
        precision=stored.precision if config.precision == "auto" else config.precision,
    )
    changed = differences(stored, config)
    for name, (old, new) in changed.items():
        words = f"{folder} holds another run: its {name} is {old}, not {new}"
        is_fixed = name.startswith("model.") and name != "model.dropout"
        is_fixed |= name == "scale" and stored.model.likelihood == "gaussian"
        is_fixed |= name == "ema" and 0 in (old, new)
        if is_fixed or name in ("role", "init", "optimizer"):
            raise ValueError(words)
        if not force:
            raise SettingError((), f"{words}; to change it from here on, set", force=True)
    if seen >= max(images, before):
        if changed:
            LOG.info("%s: nothing is left to train: other settings need more images", config.role)
        free = {name: getattr(config, name) for name in ("data_dir", "labels", "download", "graph")}
        return replace(stored, **free)
    if images != before and not extended and not force:
        raise SettingError(
            "images",
            f"can be {images:,} instead of {before:,} once the run has finished; {folder} has seen "
            f"{seen:,}; to bend its schedule here, set",
            force=True,
        )
    return config


def continues(earlier: TrainConfig, later: TrainConfig) -> bool:
    """Whether settings are of a later moment of the same run, whose budget moved its end."""
    old, new = earlier.earlier_images, later.earlier_images
    first_move = new[len(old) : len(old) + 1]
    return new[: len(old)] == old and [total for _, total in first_move] == [earlier.images]


def check_same(train_set: ImageDataset, test_set: ImageDataset) -> None:
    """Raise ValueError if the processes read different images."""
    for dataset in (train_set, test_set):
        if not all_same(int(dataset.digest[:15], 16)):
            raise ValueError(
                f"rank {rank_and_size()[0]}: the processes read different {dataset.split} images, "
                f"here {len(dataset):,} of {dataset.source}: all must see the same (a random "
                "transform of images given in Python belongs into own_images(transform=))"
            )


def check_channels(config: TrainConfig, test_set: ImageDataset) -> None:
    """Raise SettingError for a network of images with other channels."""
    channels, expected = test_set.image_channels, config.model.image_channels
    if channels != expected:
        raise SettingError(
            "init" if config.init else "image_channels",
            f"must fit the images of {config.data}, which have {channels} channels, not {expected}",
        )


def with_classes(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset
) -> ModelConfig:
    """The network, with the classes of its images. Raises ValueError for labels of others."""
    if not config.classes:
        return config.model
    classes = train_set.classes(config.label_dropout)
    test_set.labels_of(classes.names)
    return replace(config.model, classes=classes)
