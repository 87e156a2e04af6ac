"""Checkpoints of a run, with settings and a digest."""

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

from ..config import DERIVED, RunSettings, TrainConfig
from ..distributed import all_same, rank_and_size
from ..errors import SettingError
from ..fields import flatten
from ..files import read_tensors, replacing, tensor_bytes
from ..progress import LOG
from ..runlog import DATASET, Change, LogEntry, Restart, Unchecked
from ..runs import RunFolder
from .step import TrainState, total_images

# Settings that may change at any time. `resume_settings` checks the length of a run; `restore`
# compares the images and labels themselves.
CHANGEABLE = {"images", "earlier_images", "schedule_from", "data_dir", "labels"}
CHANGEABLE |= {f"model.{name}" for name in DERIVED}
CHANGEABLE |= {setting.name for setting in fields(RunSettings)}


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
    with replacing(run.checkpoint, checkpoint_bytes(state)):
        if run.checkpoint.exists():
            os.replace(run.checkpoint, run.earlier_checkpoint)
    run.write_config(state.config, image_size)


def checkpoint_bytes(state: TrainState) -> bytes:
    """The content of a checkpoint."""
    tensors = state.tensors()
    metadata = {
        "images_seen": str(state.images_seen),
        "steps": str(state.steps),
        "settings": json.dumps(asdict(state.config)),
        "data": state.train_set.digest,
    }
    metadata["sha256"] = digest(tensors, metadata)
    return tensor_bytes(tensors, metadata)


def newest_checkpoint(run: RunFolder) -> Checkpoint:
    """The newest checkpoint of a run, or the one before it if that is damaged or missing."""
    try:
        return read_checkpoint(run.checkpoint)
    except (OSError, ValueError) as error:
        if not run.earlier_checkpoint.exists():
            raise
        earlier = read_checkpoint(run.earlier_checkpoint)
        words = "%s: %s; continuing from the checkpoint before it, at %s images"
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


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[object, object]]:
    """Settings that differ, by name, without the ones that may change at any time."""
    old, new = (
        flatten(asdict(replace(config, model=replace(config.model, classes=None))))
        for config in (before, after)
    )
    if before.init and after.init and realpath(before.init) == realpath(after.init):
        new["init"] = old["init"]  # a folder is the same however it is spelled
    free = CHANGEABLE | {f"model.{name}" for name in before.model.unused & after.model.unused}
    return {
        name: (old[name], new[name]) for name in new if old[name] != new[name] and name not in free
    }


def restore(checkpoint: Checkpoint, state: TrainState, *, force: bool = False) -> list[LogEntry]:
    """Continue from a checkpoint, which must be the same for all processes.

    Returns entries for the log, of what changes from here on. Raises ValueError for other images
    without `force`, and for a state of another network or optimizer.
    """
    path, seen = checkpoint.path, checkpoint.images_seen
    place = seen, 0.0
    before, after, images = checkpoint.settings, state.config, state.train_set
    changed, entries = differences(before, after), list[LogEntry]()
    if before.schedule_from != after.schedule_from:
        lengths = total_images(before), total_images(after)
        entries.append(Restart(*place, "schedule", *lengths))
    elif before.images != after.images:
        changed["images"] = before.images, after.images
    entries += [Change(*place, name, old, new) for name, (old, new) in changed.items()]
    if checkpoint.data != images.digest:
        if not force:
            raise SettingError(
                (),
                f"{path} was trained on other images than the {len(images):,} of {images.source}, "
                "in another order, or without or with a transform; to continue with these, set",
                force=True,
            )
        entries.append(Change(*place, DATASET))
    elif images.transform is not None:
        entries.append(Unchecked(*place, "transform"))
    state.restore(checkpoint.tensors, seen, checkpoint.steps, str(path))
    if not all_same(seen):
        raise ValueError(
            f"rank {rank_and_size()[0]}: the processes read different checkpoints, here at "
            f"{seen:,} images: {path.parent} must be one folder that all of them see"
        )
    newest = RunFolder(path.parent).checkpoint
    if rank_and_size()[0] == 0 and path != newest:
        os.replace(path, newest)  # all have read it; a damaged one is not kept
    return entries if seen < total_images(after) else []
