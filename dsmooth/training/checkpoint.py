"""Checkpoints of a run, going on from one, and the weights that a new run begins with.

The two newest checkpoints are kept, each with its settings and a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..config import OWN, ModelConfig, Role, RunSettings, TrainConfig
from ..distributed import all_reduce_max, rank_and_size
from ..fields import Argument, ArgumentError, flatten
from ..files import read_tensors, write_tensors
from ..pretrained import SavedNetwork, resolve
from ..progress import LOG
from ..runs import RunFolder
from .step import TrainState

# Settings that may change at any time; `with_length` checks the length of a run.
FREE = {"images", "schedule_from", *(each.name for each in fields(RunSettings))}


def save_checkpoint(run: RunFolder, state: TrainState) -> None:
    """Write the newest checkpoint, if all weights are finite; the one before it is kept."""
    state.check_finite()
    tensors = state.tensors()
    metadata = {
        "images_seen": str(state.images_seen),
        "steps": str(state.steps),
        "settings": json.dumps(asdict(state.config)),
        "data": state.train_set.digest,
    }
    metadata["sha256"] = digest(tensors, metadata)
    write_tensors(run.new_checkpoint, tensors, metadata)
    if run.checkpoint.exists():
        os.replace(run.checkpoint, run.earlier_checkpoint)
    os.replace(run.new_checkpoint, run.checkpoint)


class Checkpoint(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    settings: TrainConfig
    images_seen: int
    steps: int
    data: str  # digest of the images
    fault: str = ""  # of a newer checkpoint


def read_checkpoint(run: RunFolder) -> Checkpoint:
    """The newest whole checkpoint of a run."""
    fault = ""
    *newer, last = [p for p in run.checkpoints() if p == run.checkpoint or p.exists()]
    for path in newer:
        try:
            return _read(path)._replace(fault=fault)
        except (OSError, ValueError) as error:
            fault = fault or str(error)
    return _read(last)._replace(fault=fault)


def check_initial(own: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    free = {"dropout", "likelihood", "smoothing_scale", "noise_levels", *own.unused}
    if initial.condition_size == 0:  # the run adds the classes
        free.add("n_classes")
    mine, theirs = flatten(asdict(own)), flatten(asdict(initial))
    other = [name for name in mine if name not in free and mine[name] != theirs[name]]
    if other:
        values = ", ".join(f"{name} {theirs[name]}, not {mine[name]}" for name in other)
        named = [part for name in other for part in ("and", Argument(name))][1:]
        raise ArgumentError("init", f"{source} has {values}: take its", *named)


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
    if "images_seen" in metadata and "data" not in metadata:
        raise ValueError(f"{path} is of dsmooth 0.1, whose runs 0.2 goes on with")
    if stated != digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: it does not have the digest that it states")
    images_seen, steps = (metadata.get(name, "") for name in ("images_seen", "steps"))
    if not all(re.fullmatch("[0-9]{1,18}", count) for count in (images_seen, steps)):
        raise ValueError(f"{path} is not a training checkpoint")
    try:
        settings = TrainConfig.from_dict(json.loads(metadata["settings"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} states settings that cannot be read: {error}") from None
    position = int(images_seen), int(steps)
    return Checkpoint(path, tensors, settings, *position, metadata.get("data", ""))


def settings_to_go_on(
    run: RunFolder, config: TrainConfig, *, force: bool
) -> tuple[TrainConfig, Checkpoint, list[str]]:
    """The settings of a run that goes on, the checkpoint that it goes on from, notes of its log."""
    before, _ = run.read_config()
    checkpoint = read_checkpoint(run)
    config = merge_with_run(config, before, checkpoint, force=force)
    if checkpoint.fault:
        words = "%s: %s; going on from the checkpoint before it, at %s images"
        LOG.info(words, config.role, checkpoint.fault, f"{checkpoint.images_seen:,}")
    return config, checkpoint, [*changes(before, config, checkpoint.images_seen)]


def go_on(run: RunFolder, checkpoint: Checkpoint, state: TrainState, *, force: bool) -> None:
    """Continue from a checkpoint, which must be the same for all processes."""
    load_checkpoint(checkpoint, state, force=force)
    latest, least = all_reduce_max(state.images_seen, -state.images_seen)
    if latest != -least:
        raise ValueError(
            f"the processes read checkpoints at {-least:,} and {latest:,} images: "
            f"{run.path} must be one folder that all of them see"
        )
    if rank_and_size()[0] == 0 and checkpoint.path != run.checkpoint:  # all have read it
        os.replace(checkpoint.path, run.checkpoint)  # a damaged one is not kept


def load_checkpoint(checkpoint: Checkpoint, state: TrainState, *, force: bool = False) -> None:
    """Continue from a checkpoint. Raises ValueError, unless `force`d, for one of another run."""
    path = checkpoint.path
    if not force:
        for name, (theirs, mine) in differences(checkpoint.settings, state.config).items():
            raise ArgumentError(
                "",
                f"{path} is a checkpoint of another run: its {name} is {theirs}, not {mine};",
                Argument("force", True),
                "goes on with that from here",
            )
        if checkpoint.data != state.train_set.digest:
            raise ArgumentError(
                "",
                f"{path} was trained on other images than the {len(state.train_set):,} of "
                f"{state.train_set.source}, or in another order;",
                Argument("force", True),
                "goes on with these",
            )
    state.restore(checkpoint.tensors, checkpoint.images_seen, checkpoint.steps, str(path))


def merge_with_run(
    config: TrainConfig, stored: TrainConfig, checkpoint: Checkpoint, *, force: bool = False
) -> TrainConfig:
    """The settings to go on with: a run's `stored` ones, its new length, and by `force` others."""
    folder, begun = checkpoint.path.parent, checkpoint.settings.schedule_from
    if config.images is not None and config.images <= begun:
        raise ArgumentError(
            "images", f"must be more than {begun:,}, to which {folder} was prolonged"
        )
    if config.budget not in (None, stored.budget):
        raise ArgumentError(
            "budget",
            f"is for a new run, and {folder} is one of {stored.images:,} images:",
            Argument("images"),
            "makes it longer",
        )
    follows = [name for name in ("precision", "keep_gates") if getattr(config, name) == "auto"]
    if config.images is None:  # a budget has become a number of images
        follows += ["images", "evaluations"]
    values: dict[str, Any] = {name: getattr(stored, name) for name in ("budget", *follows)}
    values["schedule_from"] = begun  # settings are written after their checkpoint
    if config.model.n_classes == "auto":
        values["model"] = replace(config.model, n_classes=stored.model.n_classes)
    config = replace(config, **values)
    for name, (theirs, mine) in differences(stored, config).items():
        change = f"{folder} holds another run: its {name} is {theirs}, not {mine}"
        if name == "data" and theirs == OWN:
            change = f"{folder} was trained on images given by dataset=, not on {mine}: give them"
        # The network, its average and its task stay.
        stays = name in ("role", "init", "optimizer") or name.startswith("model.")
        if name == "ema":
            stays = bool(theirs) != bool(mine)
        if stays and name != "model.dropout":
            if name not in ("ema", "optimizer"):
                raise ValueError(change)
            weights = "; a new run can begin with its weights, by"
            raise ArgumentError("", change + weights, Argument("init", str(folder)))
        if not force:
            raise ArgumentError(
                "", f"{change};", Argument("force", True), "goes on with that from here"
            )
    return with_length(config, checkpoint, force=force)


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by name, without the ones that may change at any time."""
    old, new = flatten(asdict(before)), flatten(asdict(after))
    unused = before.model.unused & after.model.unused
    free = FREE | {f"model.{name}" for name in unused}
    return {
        name: (old[name], new[name]) for name in new if old[name] != new[name] and name not in free
    }


def with_length(config: TrainConfig, checkpoint: Checkpoint, *, force: bool) -> TrainConfig:
    """Fit the schedule of `config` to another number of images than the checkpoint's."""
    seen, images, before = checkpoint.images_seen, config.images, checkpoint.settings.images
    if images is None or before is None or images == before:
        return config
    folder = checkpoint.path.parent
    if images < seen:
        raise ArgumentError("images", f"must be at least {seen:,}, which {folder} has seen")
    # An exponential schedule and the constant part of a cooldown do not depend on the number of
    # images. If Muon's angle does not either, the run goes on as one of this length.
    angle_follows = config.optimizer == "muon" and config.kernel_rate is None
    if config.schedule == "exponential" and not angle_follows:
        return config
    latest = None
    if config.schedule == "cooldown" and not angle_follows:
        begun = config.schedule_from
        latest = begun + (1 - config.cooldown) * (min(images, before) - begun)
        if seen <= latest:
            return config
    if seen >= before:  # finished: the schedule begins again, over the images that are added
        return replace(config, schedule_from=seen)
    if force:
        return config
    until = f", or until {latest:,.0f} images, where the learning rate falls" if latest else ""
    raise ArgumentError(
        "images",
        f"can be {images:,} instead of {before:,} once the run has finished{until}; "
        f"{folder} has seen {seen:,};",
        Argument("force", True),
        "bends its schedule here",
    )


def changes(before: TrainConfig, after: TrainConfig, seen: int) -> Iterator[str]:
    """Sentences for the log on the settings that change in a run after so many images."""
    if before.schedule_from != after.schedule_from:
        lengths = f"{after.schedule_from:,} to {after.images:,}"
        yield f"prolonged from {lengths} images, its schedule begun again"
    for name, (old, new) in differences(before, after).items():
        yield f"{name} {old} up to {seen:,} images, {new} from then on"


def find_initial(source: str, role: Role) -> SavedNetwork:
    """The network of a role in `source`, whose weights a new run begins with."""
    found = resolve(source)
    run = found[0].run
    if role == "plain" and len(found) == 2 and run is not None:
        found = resolve(run.path.with_name("plain"))
    network = next((one for one in found if one.role == role), None)
    if network is None and len(found) == 2:
        raise ValueError(f"{source} is a pair, which has no plain model to begin with")
    if network is None:
        raise ValueError(f"{source} is the run of a {found[0].role} model, not of a {role} one")
    return network
