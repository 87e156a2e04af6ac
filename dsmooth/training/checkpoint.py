"""Checkpoints of a run, with the settings of the run and a digest."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..config import RunSettings, TrainConfig
from ..files import parse_json, read_tensors, write_tensors
from ..pretrained.runs import SETTINGS_KEY, RunFolder, run_config
from ..progress import LOG
from ..work import once
from .step import TrainState

# Settings that may change when a run is resumed: how it is computed, and where its images lie,
# which are compared themselves.
FREE = ("data_dir", "labels", *(setting.name for setting in fields(RunSettings)))


class Checkpoint(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    images_seen: int
    steps: int
    data: str  # digest of the images
    config: TrainConfig | None  # None in those of earlier versions


def save_checkpoint(run: RunFolder, state: TrainState) -> None:
    """Write the newest checkpoint, if all weights are finite.

    The checkpoint before it is kept, should the newest one be damaged.
    """
    state.check_finite()
    tensors = state.tensors()
    metadata = {
        "images_seen": str(state.images_seen),
        "steps": str(state.steps),
        "data": state.train_set.digest,
        SETTINGS_KEY: json.dumps(asdict(state.config)),
    }
    metadata["sha256"] = digest(tensors, metadata)
    write_tensors(run.checkpoint, tensors, metadata, run.earlier_checkpoint)


def newest_checkpoint(run: RunFolder) -> Checkpoint:
    """The newest checkpoint of a run, or the one before it if that is missing or damaged.

    Raises OSError for one that cannot be read.
    """
    try:
        return read_checkpoint(run.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        if not run.earlier_checkpoint.exists():
            raise
        earlier = read_checkpoint(run.earlier_checkpoint)
        words = "%s: %s; continuing from the checkpoint before it, at %s images"
        LOG.info(words, run.path, error, f"{earlier.images_seen:,}")
        return earlier


def set_aside(path: Path) -> None:
    """Give a damaged checkpoint another name, if it is there."""
    names = (f"checkpoint-damaged-{number}.safetensors" for number in itertools.count(1))
    if path.exists():
        path.rename(next(p for n in names if not (p := path.with_name(n)).exists()))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises OSError, or ValueError for a damaged one, naming the file."""
    tensors, metadata = read_tensors(path)
    if metadata.pop("sha256", None) != digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: it does not have the digest that it states")
    seen, steps = int(metadata["images_seen"]), int(metadata["steps"])
    stated = metadata.get(SETTINGS_KEY)
    config = None if stated is None else run_config(parse_json(stated, path), path)
    return Checkpoint(path, tensors, seen, steps, metadata["data"], config)


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of metadata and of tensors with names and shapes, whatever their memory order."""
    sha = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def restore(run: RunFolder, state: TrainState, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint that all processes have read; a damaged newer one is set aside.

    Raises ValueError for the state of another network or optimiser.
    """
    path, seen = checkpoint.path, checkpoint.images_seen
    state.restore(checkpoint.tensors, seen, checkpoint.steps, str(path))
    if path != run.checkpoint:
        once(set_aside, run.checkpoint)
