"""The settings of a run, complete before its first step: of its checkpoint, images and device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch

from ..config import OWN, RunSettings, TrainConfig
from ..data import ImageDataset
from ..distributed import all_same, broadcast_int, rank_and_size
from ..fields import flatten
from ..machine import has_fast_bfloat16
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet
from ..progress import LOG
from .checkpoint import Checkpoint
from .data_parallel import share_of_batch
from .step import total_images

# Settings that may change at any time; `settings_to_go_on` checks the length of a run. The
# network's smoothing_scale follows from the scale, the names of its classes from the data.
FREE = {"images", "schedule_from", "model.smoothing_scale", "model.class_names"}
FREE |= {each.name for each in fields(RunSettings)}
# A and G, if kept, may take this share of the memory that is free before a run begins.
MEMORY_FRACTION = 0.25


def settings_to_go_on(
    config: TrainConfig,
    checkpoint: Checkpoint,
    *,
    match_channels: bool = False,
    force: bool = False,
) -> TrainConfig:
    """Settings of a resumed run: the user's, with what they leave open from the checkpoint.

    A finished run may be prolonged, its schedule begun again; an unfinished one, and other
    settings, take `force`. Raises ValueError without it, and for settings of another run. Where
    nothing is left to train none changes.
    """
    stored, seen, folder = checkpoint.settings, checkpoint.images_seen, checkpoint.path.parent
    before = total_images(stored)
    images = config.images or before  # a budget has become a number of images
    if images < min(seen, before):
        raise ValueError(f"`images` must be at least {seen:,}, which {folder} has seen")
    if config.budget not in (None, stored.budget):
        raise ValueError(
            f"`budget` is for a new run, and {folder} is one of {before:,} images: `images` makes "
            "it longer"
        )
    if match_channels:
        config = with_channels(config, stored.model.image_channels)
    model = config.model
    if model.n_classes == "auto":
        model = replace(model, n_classes=stored.model.n_classes)
    config = replace(
        config,
        model=model,
        images=images,
        budget=stored.budget,
        schedule_from=stored.schedule_from,
        evaluations=config.evaluations if config.images else stored.evaluations,
        precision=stored.precision if config.precision == "auto" else config.precision,
        keep_gates=stored.keep_gates if config.keep_gates == "auto" else config.keep_gates,
    )
    changed = differences(stored, config)
    for name, (old, new) in changed.items():
        refuse_change(name, old, new, checkpoint, force=force)
    if seen >= max(images, before):
        if changed:
            LOG.info("%s: nothing is left to train: other settings need more images", config.role)
        return replace(
            stored, data_dir=config.data_dir, download=config.download, graph=config.graph
        )
    if seen >= before:  # finished: the schedule begins again, over the images that are added
        return replace(config, schedule_from=seen)
    if images != before and not force:
        raise ValueError(
            f"`images` can be {images:,} instead of {before:,} once the run has finished; {folder} "
            f"has seen {seen:,}; `force=True` bends its schedule here"
        )
    return config


def refuse_change(name: str, old: Any, new: Any, checkpoint: Checkpoint, *, force: bool) -> None:
    """Raise ValueError for another value of a setting, unless `force` may change it."""
    folder, stored = checkpoint.path.parent, checkpoint.settings
    change = f"{folder} holds another run: its {name} is {old}, not {new}"
    if name == "data" and old == OWN:
        change = f"{folder} was trained on images given by dataset=, not on {new}: give them"
    of_network = name.startswith("model.") and name != "model.dropout"
    of_network |= name == "scale" and stored.model.likelihood == "gaussian"
    if of_network or name in ("role", "init"):
        raise ValueError(change)
    if name == "optimizer" or (name == "ema" and 0 in (old, new)):
        raise ValueError(f"{change}; a new run can begin with its weights, by `init={folder}`")
    if not force:
        raise ValueError(f"{change}; `force=True` goes on with that from here")


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by name, without the ones that may change at any time."""
    old, new = flatten(asdict(before)), flatten(asdict(after))
    for name in ("data_dir", "init"):  # a folder is the same however it is spelled
        if old[name] and new[name] and os.path.realpath(old[name]) == os.path.realpath(new[name]):
            old[name] = new[name]
    unused = before.model.unused & after.model.unused
    free = FREE | {f"model.{name}" for name in unused}
    return {
        name: (old[name], new[name]) for name in new if old[name] != new[name] and name not in free
    }


def changes(before: TrainConfig, after: TrainConfig, seen: int) -> Iterator[str]:
    """Sentences for the log on the settings that change in a run after `seen` images."""
    changed = differences(before, after)
    if before.schedule_from != after.schedule_from:
        lengths = f"{after.schedule_from:,} to {after.images:,}"
        yield f"prolonged from {lengths} images, its schedule begun again"
    elif before.images != after.images:
        changed["images"] = before.images, after.images
    for name, (old, new) in changed.items():
        yield f"{name} {old} up to {seen:,} images, {new} from then on"


def with_channels(config: TrainConfig, channels: int) -> TrainConfig:
    """The settings with another image_channels of the model; colour has no atom for every byte."""
    model = config.model
    if channels != 1 and model.atoms == "all":
        # With features and without those atoms, networks for colour are worse (decision 013).
        model = replace(model, atoms=(), fourier_features=0)
    return replace(config, model=replace(model, image_channels=channels))


def run_settings(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
    *,
    match_channels: bool = False,
) -> TrainConfig:
    """The settings with what the images and the device decide; all processes call this.

    The images decide the model's channels (with `match_channels`) and classes, the device the
    precision and keep_gates. Raises ValueError for images that do not fit, or differ between the
    processes.
    """
    for dataset in (train_set, test_set):
        if not all_same(int(dataset.digest[:15], 16)):
            raise ValueError(
                f"rank {rank_and_size()[0]}: the processes read different {dataset.split} images, "
                f"here {len(dataset):,} of {dataset.source}: all must see the same (a random "
                "transform of images given in Python belongs into transform=)"
            )
    channels = test_set.image_channels
    if match_channels:
        config = with_channels(config, channels)
    if channels != config.model.image_channels:
        raise ValueError(
            f"`{'init' if config.init else 'image_channels'}` must fit the images "
            f"{'given' if config.data == OWN else f'of {config.data}'}, which have {channels} "
            f"channels, not {config.model.image_channels}"
        )
    n_classes, names = config.model.n_classes, train_set.class_names
    if n_classes == "auto":
        if train_set.labels is None:
            raise ValueError(
                f'`n_classes` cannot be "auto": {train_set.source} has no labels to count'
            )
        n_classes = len(names) or 1 + int(train_set.labels.max())
    if n_classes == 0:
        names = ()
    if len(names) not in (0, n_classes):
        raise ValueError(
            f"`n_classes` must be {len(names)}, for the classes {', '.join(names)} of "
            f"{train_set.source}, or 0, got {n_classes}"
        )
    for dataset in (train_set, test_set):
        dataset.labels_for(n_classes)
    precision = config.precision
    if precision == "auto":
        fast = broadcast_int(has_fast_bfloat16(device))  # machines may differ
        precision = "bfloat16" if fast else "float32"
    model = replace(config.model, n_classes=n_classes, class_names=names)
    config = replace(config, model=model, precision=precision)
    if config.keep_gates != "auto":
        return config
    fit = gates_fit(config, device, test_set.image_size)
    return replace(config, keep_gates="on" if fit else "off")


def gates_fit(config: TrainConfig, device: torch.device, image_size: tuple[int, int]) -> bool:
    """Whether a GPU has the memory to keep A and G of all gated resnets, by rank 0's."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(broadcast_int(gate_bytes(config, *image_size) <= MEMORY_FRACTION * free))


def gate_bytes(config: TrainConfig, height: int, width: int) -> int:
    """Memory of A and G of all gated resnets, for the images that a process computes at once."""
    with torch.device("meta"):
        model = PixelCNNpp(config.model)
    halvings = {"up": (0, 1, 2), "down": (2, 1, 0)}
    filters = 0.0
    for name, block in model.named_modules():
        if isinstance(block, GatedResnet):
            kind, number, *_ = name.split(".")
            times = halvings[kind][int(number)] if kind in halvings else 0
            filters += 2 * block.conv_in.weight_v.shape[0] / 4**times
    rows = 2 * height if config.model.conditioning == "stack" else height
    images = share_of_batch(config)[1] // config.accumulate
    return int(filters * images * rows * width * (2 if config.precision == "bfloat16" else 4))
