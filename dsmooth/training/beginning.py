"""The beginning of a run: its folder, its images, the settings that follow, its first weights."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..config import ModelConfig, Role, TrainConfig
from ..data import SPLITS, ImageDataset, load_splits
from ..data.reading import with_labels
from ..distributed import all_same, barrier, broadcast_int, from_torchrun, launch, rank_and_size
from ..fields import Json, flatten
from ..files import check_writable
from ..machine import has_fast_bfloat16
from ..nn import PixelCNNpp
from ..pretrained import Loaded, load
from ..runs import RunFolder


def is_restart(run: RunFolder) -> bool:
    """Whether torchrun starts its processes again, and the run was begun by the same torchrun."""
    restarted = from_torchrun("TORCHELASTIC_RESTART_COUNT", 0) > 0
    if not (restarted and run.can_resume() and run.log.is_file()):
        return False
    starts = [entry.get("launch") for entry in run.read_log() if entry["event"] == "start"]
    return starts[-1:] == [launch()]


def initial_network(config: TrainConfig) -> PixelCNNpp | None:
    """The network whose weights a new run begins with, if it names one."""
    if config.init is None:
        return None
    network = find_initial(config.init, config.role).networks[config.role]
    check_initial(config.model, network.config, config.init)
    return network


def check_initial(model: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    # Classes that are not the other run's begin with its label of zeros.
    free = {"dropout", "likelihood", "smoothing_scale", "n_classes", "class_names", *model.unused}
    free |= {"class_shares", "labels_sha256", "label_dropout"}
    new, old = flatten(asdict(model)), flatten(asdict(initial))
    other = [name for name in new if name not in free and new[name] != old[name]]
    if other:
        values = ", ".join(f"{name} {old[name]}, not {new[name]}" for name in other)
        named = " and ".join(f"`{name}`" for name in other)
        raise ValueError(f"`init` {source} has {values}: take its {named}")


def find_initial(source: str, role: Role) -> Loaded:
    """The networks in `source`. ValueError without one of a role, which a new run begins with."""
    loaded = load(source)
    if role not in loaded.networks:
        roles = " and a ".join(loaded.networks)
        raise ValueError(f"{source} has a {roles} model, not a {role} one to begin with")
    return loaded


def check_new_run(run: RunFolder, config: TrainConfig) -> None:
    """Raise ValueError for a folder that cannot be, that has a run, or is of training images."""
    check_writable(run.config)
    if config.images is None and config.budget is None:
        raise ValueError("`images` or `budget` must be given: how long is the run to be?")
    if run.config.exists():
        raise ValueError(
            f"{run.path} already holds a run; go on with it by `resume=True` or choose another"
        )
    images = config.data_dir if config.data == "folder" else None
    # Not Path.resolve, which fails where links go round.
    real = Path(os.path.realpath(run.path))
    if images is not None and real.is_relative_to(os.path.realpath(images)):
        raise ValueError(
            f"{run.path} lies in the data's folder {images}, where its samples would become "
            "training images; choose another folder"
        )


def load_data(config: TrainConfig, *, progress: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the data set that `config` names.

    progress: whether rank 0 shows how far it is. All processes call this.
    """
    rank = rank_and_size()[0]
    # Rank 0 downloads, then the first process of each machine without these files. The rest read.
    own_turn = ((rank > 0) + (from_torchrun("LOCAL_RANK", 0) > 0)) * config.download
    for turn in range(3):
        if turn == own_turn:
            train, test = load_splits(
                config.data,
                SPLITS,
                config.data_dir,
                config.download,
                config.image_size,
                progress and rank == 0,
            )
        barrier()
    if config.labels is None:
        return train, test
    return with_labels(train, Path(config.labels)), with_labels(test, Path(config.labels))


def run_settings(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
) -> TrainConfig:
    """The settings with what the images and the device decide; all processes call this.

    The images decide the model's classes, the device the precision. Raises ValueError for images
    that do not fit, or differ between the processes.
    """
    for dataset in (train_set, test_set):
        if not all_same(int(dataset.digest[:15], 16)):
            raise ValueError(
                f"rank {rank_and_size()[0]}: the processes read different {dataset.split} images, "
                f"here {len(dataset):,} of {dataset.source}: all must see the same (a random "
                "transform of images given in Python belongs into transform=)"
            )
    channels = test_set.image_channels
    if channels != config.model.image_channels:
        name = "init" if config.init else "image_channels"
        raise ValueError(
            f"`{name}` must fit the images of {config.data}, which have {channels} channels, not "
            f"{config.model.image_channels}"
        )
    n_classes, names = config.model.n_classes, train_set.class_names
    if n_classes == "auto":
        if train_set.labels is None:
            raise ValueError(
                f'`n_classes` cannot be "auto": {train_set.source} has no labels to count'
            )
        n_classes = len(names) or 1 + int(train_set.labels.max())
    names = names if n_classes else ()
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
    classes: Json = {"n_classes": n_classes, "class_names": names}
    if n_classes:
        classes["class_shares"] = train_set.class_shares(n_classes)
        classes["labels_sha256"] = train_set.labels_sha256
    model = replace(config.model, **classes)
    return replace(config, model=model, precision=precision)
