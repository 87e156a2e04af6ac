"""Checkpoints of a run, with settings and a digest, and what a run that goes on takes from one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..config import RunSettings, TrainConfig
from ..distributed import all_same, rank_and_size
from ..fields import flatten
from ..files import read_tensors, replacing, tensor_bytes
from ..progress import LOG
from ..runs import RunFolder
from .step import TrainState, total_images

# Settings that may change at any time; `settings_to_go_on` checks the length of a run, `go_on` the
# images. The network's smoothing_scale follows from the scale, the names of its classes from the
# data.
FREE = {"images", "schedule_from", "data_dir", "model.smoothing_scale", "model.class_names"}
FREE |= {f"model.{name}" for name in ("class_shares", "labels_sha256", "label_dropout")}
FREE |= {each.name for each in fields(RunSettings)}


class Checkpoint(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    settings: TrainConfig
    images_seen: int
    steps: int
    data: str  # digest of the images


def save_checkpoint(run: RunFolder, state: TrainState, image_size: tuple[int, int]) -> None:
    """Write the newest checkpoint, if all weights are finite, and then the settings.

    The checkpoint before it is kept, should the newest one be damaged.
    """
    state.check_finite()
    tensors = state.tensors()
    metadata = {
        "images_seen": str(state.images_seen),
        "steps": str(state.steps),
        "settings": json.dumps(asdict(state.config)),
        "data": state.train_set.digest,
    }
    metadata["sha256"] = digest(tensors, metadata)
    with replacing(run.checkpoint, tensor_bytes(tensors, metadata)):
        if run.checkpoint.exists():
            os.replace(run.checkpoint, run.earlier_checkpoint)
    run.write_config(state.config, image_size)


def newest_checkpoint(run: RunFolder) -> Checkpoint:
    """The newest checkpoint of a run, or the one before it where that is damaged or not there."""
    try:
        return read_checkpoint(run.checkpoint)
    except (OSError, ValueError) as error:
        if not run.earlier_checkpoint.exists():
            raise
        earlier = read_checkpoint(run.earlier_checkpoint)
        words = "%s: %s; going on from the checkpoint before it, at %s images"
        LOG.info(words, earlier.settings.role, error, f"{earlier.images_seen:,}")
        return earlier


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises FileNotFoundError or ValueError, naming the file."""
    tensors, metadata = read_tensors(path)
    if metadata.pop("sha256", None) != digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: it does not have the digest that it states")
    try:
        settings, data = TrainConfig.from_dict(json.loads(metadata["settings"])), metadata["data"]
        seen, steps = int(metadata["images_seen"]), int(metadata["steps"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a training checkpoint: {error}") from None
    return Checkpoint(path, tensors, settings, seen, steps, data)


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of metadata and of tensors with names and shapes, whatever their memory order."""
    sha = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def settings_to_go_on(
    config: TrainConfig, checkpoint: Checkpoint, *, force: bool = False
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
    )
    changed = differences(stored, config)
    for name, (old, new) in changed.items():
        words = f"{folder} holds another run: its {name} is {old}, not {new}"
        of_network = name.startswith("model.") and name != "model.dropout"
        of_network |= name == "scale" and stored.model.likelihood == "gaussian"
        of_network |= name == "ema" and 0 in (old, new)
        if of_network or name in ("role", "init", "optimizer"):
            raise ValueError(words)
        if not force:
            raise ValueError(f"{words}; `force=True` goes on with that from here")
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


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[object, object]]:
    """Settings that differ, by name, without the ones that may change at any time."""
    old, new = flatten(asdict(before)), flatten(asdict(after))
    if before.init and after.init and realpath(before.init) == realpath(after.init):
        new["init"] = old["init"]  # a folder is the same however it is spelled
    free = FREE | {f"model.{name}" for name in before.model.unused & after.model.unused}
    return {
        name: (old[name], new[name]) for name in new if old[name] != new[name] and name not in free
    }


def go_on(checkpoint: Checkpoint, state: TrainState, *, force: bool = False) -> list[str]:
    """Continue from a checkpoint, which must be the same for all processes; notes for the log."""
    path, seen = checkpoint.path, checkpoint.images_seen
    before, after, images = checkpoint.settings, state.config, state.train_set
    changed, notes = differences(before, after), []
    if before.schedule_from != after.schedule_from:
        lengths = f"{after.schedule_from:,} to {after.images:,}"
        notes.append(f"prolonged from {lengths} images, its schedule begun again")
    elif before.images != after.images:
        changed["images"] = before.images, after.images
    notes += [
        f"{name} {old} up to {seen:,} images, {new} from then on"
        for name, (old, new) in changed.items()
    ]
    if checkpoint.data != images.digest:
        if not force:
            raise ValueError(
                f"{path} was trained on other images than the {len(images):,} of {images.source}, "
                "in another order, or not as to transform=; `force=True` goes on with these"
            )
        notes.append(f"other images, another order or another transform, from {seen:,} images on")
    elif images.transform is not None:
        notes.append("transform= is taken for the one that the run began with: nothing compares it")
    state.restore(checkpoint.tensors, seen, checkpoint.steps, str(path))
    if not all_same(seen):
        raise ValueError(
            f"rank {rank_and_size()[0]}: the processes read different checkpoints, here at "
            f"{seen:,} images: {path.parent} must be one folder that all of them see"
        )
    newest = RunFolder(path.parent).checkpoint
    if rank_and_size()[0] == 0 and path != newest:
        os.replace(path, newest)  # all have read it; a damaged one is not kept
    return notes if seen < total_images(state.config) else []
