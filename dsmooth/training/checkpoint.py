"""Checkpoints of a run: the two newest are kept, each with its settings and a digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..config import TrainConfig
from ..files import read_tensors, replacing, tensor_bytes
from ..progress import LOG
from ..runs import RunFolder
from .step import TrainState


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
