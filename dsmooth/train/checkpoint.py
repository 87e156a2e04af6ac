"""The checkpoints of a run: the two newest are kept, each with its settings and a digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..config import TrainConfig, flatten
from ..files import read_tensors, write_tensors
from ..runs import RunFolder
from .state import TrainState

# May change: how a step runs, and the length of a run, as `resume.with_length` says.
_MOVABLE = ("graph", "keep_gates", "images", "evaluations", "schedule_from")


def save_checkpoint(run: RunFolder, state: TrainState) -> None:
    """Write the newest checkpoint of `run`; the one before it is kept.

    Raises NonFiniteLoss, and leaves the files alone, if a weight is infinite or NaN.
    """
    state.check_finite()
    tensors = state.tensors()
    metadata = {
        "images_seen": str(state.images_seen),
        "steps": str(state.steps),
        "settings": json.dumps(asdict(state.config)),
        "sha256": digest(tensors),
    }
    write_tensors(run.new_checkpoint, tensors, metadata)
    if run.checkpoint.exists():
        os.replace(run.checkpoint, run.earlier_checkpoint)
    os.replace(run.new_checkpoint, run.checkpoint)


def load_checkpoint(run: RunFolder, state: TrainState, *, force: bool = False) -> list[str]:
    """Continue `state` from the newest checkpoint of `run` that is whole.

    force: also from one of other settings. Returns a sentence for the user if the checkpoint is not
    the newest one. Raises FileNotFoundError or ValueError, naming the file, where no checkpoint is
    whole or it is another run's.
    """
    try:
        _restore(run.checkpoint, state, force)
    except (FileNotFoundError, DamagedCheckpoint) as error:
        if not run.earlier_checkpoint.exists():
            raise
        _restore(run.earlier_checkpoint, state, force)
        return [f"{error}; going on from the checkpoint before it, at {state.images_seen:,} images"]
    return []


class DamagedCheckpoint(ValueError):
    """A file that does not hold what was written into it."""


def stored_progress(run: RunFolder) -> tuple[int, int | None]:
    """The images that the newest whole checkpoint has seen, and those that it was to see."""
    seen = 0
    for path in (run.checkpoint, run.earlier_checkpoint):
        try:
            metadata = _read(path)[1]
        except (FileNotFoundError, DamagedCheckpoint):
            continue
        seen = int(metadata["images_seen"])
        if "settings" in metadata:
            return seen, _settings(path, metadata["settings"]).images
        break
    return seen, run.read_config()[0].images


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names and shapes, whatever their memory order."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a whole checkpoint."""
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from None
    counts = (metadata.get(name, "") for name in ("images_seen", "steps"))
    if not all(re.fullmatch("[0-9]{1,18}", count) for count in counts):
        raise ValueError(f"{path} is not a training checkpoint")
    # Checkpoints of earlier versions have no digest.
    if metadata.get("sha256", digest(tensors)) != digest(tensors):
        raise DamagedCheckpoint(f"{path} is damaged: its tensors do not have the digest it states")
    return tensors, metadata


def _restore(path: Path, state: TrainState, force: bool) -> None:
    tensors, metadata = _read(path)
    if "settings" in metadata and not force:
        _check_settings(path, _settings(path, metadata["settings"]), state.config)
    state.restore(
        tensors,
        images_seen=int(metadata["images_seen"]),
        steps=int(metadata["steps"]),
        source=str(path),
    )


def _settings(path: Path, text: str) -> TrainConfig:
    """The settings that a checkpoint states."""
    try:
        return TrainConfig.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} states settings that cannot be read: {error}") from None


def _check_settings(path: Path, stored: TrainConfig, config: TrainConfig) -> None:
    """Raise ValueError if a checkpoint was made with other settings than those of its folder."""
    mine, theirs = flatten(asdict(config)), flatten(asdict(stored))
    for name, value in mine.items():
        if value != theirs[name] and name not in _MOVABLE:
            raise ValueError(
                f"{path} is a checkpoint of another run: its {name} is {theirs[name]}, that of "
                f"the folder's settings {value}"
            )
