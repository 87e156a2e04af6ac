"""Checkpoints of a run, going on from one, and the weights that a new run begins with.

The two newest checkpoints are kept, each with its settings and a digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..config import OWN, ModelConfig, Role, RunSettings, TrainConfig
from ..distributed import all_reduce_max, rank_and_size
from ..fields import flatten
from ..files import read_tensors, replacing, tensor_bytes
from ..pretrained import SavedNetwork, resolve
from ..progress import LOG
from ..runs import RunFolder
from .step import TrainState, total_images

# Settings that may change at any time; `with_length` checks the length of a run. The network's
# smoothing_scale follows from the scale, the names of its classes from the data.
FREE = {"images", "schedule_from", "model.smoothing_scale", "model.class_names"}
FREE |= {each.name for each in fields(RunSettings)}


def save_checkpoint(run: RunFolder, state: TrainState, image_size: tuple[int, int]) -> None:
    """Write the newest checkpoint, if all weights are finite, and then its settings.

    The checkpoint before it is kept. Forced settings begin with a checkpoint.
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


class Checkpoint(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    settings: TrainConfig
    images_seen: int
    steps: int
    data: str  # digest of the images


def read_checkpoint(run: RunFolder) -> Checkpoint:
    """The newest checkpoint of a run, or the one before it where that is damaged or not there."""
    try:
        return _read(run.checkpoint)
    except (OSError, ValueError) as error:
        if not run.earlier_checkpoint.exists():
            raise
        earlier = _read(run.earlier_checkpoint)
        words = "%s: %s; going on from the checkpoint before it, at %s images"
        LOG.info(words, earlier.settings.role, error, f"{earlier.images_seen:,}")
        return earlier


def check_initial(own: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    # Classes that are not the other run's begin with its label of zeros.
    free = {"dropout", "likelihood", "smoothing_scale", "n_classes", "class_names", *own.unused}
    mine, theirs = flatten(asdict(own)), flatten(asdict(initial))
    other = [name for name in mine if name not in free and mine[name] != theirs[name]]
    if other:
        values = ", ".join(f"{name} {theirs[name]}, not {mine[name]}" for name in other)
        named = " and ".join(f"`{name}`" for name in other)
        raise ValueError(f"`init` {source} has {values}: take its {named}")


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of metadata and of tensors with names and shapes, whatever their memory order."""
    sha = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def _read(path: Path) -> Checkpoint:
    tensors, metadata = read_tensors(path)
    stated = metadata.pop("sha256", None)
    if stated != digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: it does not have the digest that it states")
    counts = [metadata.get(name, "") for name in ("images_seen", "steps")]
    if not all(re.fullmatch("[0-9]{1,18}", count) for count in counts):
        raise ValueError(f"{path} is not a training checkpoint")
    try:
        settings, data = TrainConfig.from_dict(json.loads(metadata["settings"])), metadata["data"]
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} states settings that cannot be read: {error}") from None
    return Checkpoint(path, tensors, settings, int(counts[0]), int(counts[1]), data)


def go_on(
    run: RunFolder, checkpoint: Checkpoint, state: TrainState, *, force: bool = False
) -> list[str]:
    """Continue from a checkpoint, which must be the same for all processes; notes for the log."""
    path, seen = checkpoint.path, checkpoint.images_seen
    notes = [*changes(checkpoint.settings, state.config, seen)]
    images = state.train_set
    if checkpoint.data != images.digest:
        before = f"on other images than the {len(images):,} of {images.source}, or in another order"
        now = "other images, or in another order"
        other = replace(images, transform=Tensor.clone if images.transform is None else None)
        if checkpoint.data == other.digest:
            before, now = ("without", "a") if images.transform else ("with", "no")
            before, now = f"{before} a transform", f"{now} transform"
        if not force:
            raise ValueError(f"{path} was trained {before}; `force=True` goes on with these")
        notes.append(f"{now}, from {seen:,} images on")
    elif images.transform is not None:
        notes.append("transform= is taken for the one that the run began with: nothing compares it")
    state.restore(checkpoint.tensors, seen, checkpoint.steps, str(path))
    latest, least = all_reduce_max(seen, -seen)
    if latest != -least:
        raise ValueError(
            f"the processes read checkpoints at {-least:,} and {latest:,} images: "
            f"{run.path} must be one folder that all of them see"
        )
    if rank_and_size()[0] == 0 and path != run.checkpoint:  # all have read it
        os.replace(path, run.checkpoint)  # a damaged one is not kept
    return notes if seen < total_images(state.config) else []


def settings_to_go_on(
    config: TrainConfig, checkpoint: Checkpoint, *, force: bool = False
) -> TrainConfig:
    """The settings given, fitted to a checkpoint: its length and precision where none are given.

    Raises ValueError for others than the checkpoint's, but by `force`. Where nothing is left to
    train, `force` changes none that decides weights.
    """
    stored, seen = checkpoint.settings, checkpoint.images_seen
    folder, begun = checkpoint.path.parent, stored.schedule_from
    if config.images is not None and config.images <= begun:
        raise ValueError(f"`images` must be more than {begun:,}, to which {folder} was prolonged")
    if config.budget not in (None, stored.budget):
        raise ValueError(
            f"`budget` is for a new run, and {folder} is one of {stored.images:,} images: `images` "
            "makes it longer"
        )
    follows = [name for name in ("precision", "keep_gates") if getattr(config, name) == "auto"]
    if config.images is None:  # a budget has become a number of images
        follows += ["images", "evaluations"]
    same = ("budget", "schedule_from", *follows)
    values: dict[str, Any] = {name: getattr(stored, name) for name in same}
    if config.model.n_classes == "auto":
        values["model"] = replace(config.model, n_classes=stored.model.n_classes)
    config = replace(config, **values)
    fixed = {"role", "init"}
    if stored.model.likelihood == "gaussian":  # the network has the scale
        fixed.add("scale")
    for name, (theirs, mine) in differences(stored, config).items():
        change = f"{folder} holds another run: its {name} is {theirs}, not {mine}"
        if name == "data" and theirs == OWN:
            change = f"{folder} was trained on images given by dataset=, not on {mine}: give them"
        if name in fixed or (name.startswith("model.") and name != "model.dropout"):
            raise ValueError(change)
        if name == "optimizer" or (name == "ema" and 0 in (theirs, mine)):
            weights = f"{change}; a new run can begin with its weights, by"
            raise ValueError(f"{weights} `init={folder}`")
        if not force:
            raise ValueError(f"{change}; `force=True` goes on with that from here")
    end = total_images(stored)
    if force and seen >= end and total_images(config) in (end, seen):
        if differences(stored, config):
            LOG.info("%s: nothing is left to train: other settings need more images", config.role)
        free = {each.name: getattr(config, each.name) for each in fields(RunSettings)}
        return replace(stored, **free, images=config.images, data_dir=config.data_dir)
    return with_length(config, checkpoint, force=force)


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


def same_until(config: TrainConfig, before: TrainConfig) -> float:
    """The images up to which a run of another length has the learning rates of `config`."""
    begun, longest = config.schedule_from, min(total_images(config), total_images(before))
    if config.optimizer == "muon" and config.kernel_rate is None:
        return begun  # Muon's angle follows from the number of images
    if config.schedule == "cooldown":
        return begun + (1 - config.cooldown) * (longest - begun)
    return math.inf if config.schedule == "exponential" else begun


def with_length(config: TrainConfig, checkpoint: Checkpoint, *, force: bool) -> TrainConfig:
    """Fit the schedule of `config` to another number of images than the checkpoint's."""
    seen, folder = checkpoint.images_seen, checkpoint.path.parent
    images, before = total_images(config), total_images(checkpoint.settings)
    if images == before or images == seen >= before:
        return config
    if images < seen:
        raise ValueError(f"`images` must be at least {seen:,}, which {folder} has seen")
    latest = same_until(config, checkpoint.settings)
    if seen <= latest:
        return config
    if seen >= before:  # finished: the schedule begins again, over the images that are added
        return replace(config, schedule_from=seen)
    if force:
        return config
    until = f", or until {latest:,.0f} images, where the learning rate falls"
    raise ValueError(
        f"`images` can be {images:,} instead of {before:,} once the run has "
        f"finished{until * (latest > config.schedule_from)}; {folder} has seen {seen:,}; "
        "`force=True` bends its schedule here"
    )


def changes(before: TrainConfig, after: TrainConfig, seen: int) -> Iterator[str]:
    """Sentences for the log on the settings that change in a run after so many images."""
    changed = differences(before, after)
    if before.schedule_from != after.schedule_from:
        lengths = f"{after.schedule_from:,} to {after.images:,}"
        yield f"prolonged from {lengths} images, its schedule begun again"
    elif before.images != after.images and seen > same_until(after, before):
        changed["images"] = before.images, after.images
    for name, (old, new) in changed.items():
        yield f"{name} {old} up to {seen:,} images, {new} from then on"


def find_initial(source: str, role: Role) -> SavedNetwork:
    """The network of a role in `source`, whose weights a new run begins with."""
    networks = resolve(source)
    first = networks[0]
    if role == "plain" and len(networks) == 2 and first.training is not None:
        networks = resolve(first.folder.with_name("plain"))
    network = next((one for one in networks if one.role == role), None)
    if network is None and len(networks) == 2:
        raise ValueError(f"{source} is a pair, which has no plain model to begin with")
    if network is None:
        raise ValueError(f"{source} is the run of a {first.role} model, not of a {role} one")
    return network
