"""The beginning of a run: its settings, its images, and the checkpoint that it goes on from."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OWN, TrainConfig
from ..data import ImageDataset, load_dataset
from ..data.labels import with_labels
from ..distributed import all_same, barrier, broadcast_int, from_torchrun, launch, rank_and_size
from ..files import check_writable, lock_folder
from ..nn import PixelCNNpp
from ..progress import LOG, reading
from ..runs import RunFolder
from .checkpoint import (
    Checkpoint,
    check_initial,
    find_initial,
    read_checkpoint,
    save_checkpoint,
    settings_to_go_on,
)
from .step import TrainState

HOLDER = "another training run"  # of the lock of a folder


def choose_beginning(
    run: RunFolder,
    config: TrainConfig,
    stack: contextlib.ExitStack,
    *,
    match_channels: bool,
    resume: bool,
    force: bool,
) -> tuple[TrainConfig, Checkpoint | None]:
    """The settings of a run, and the checkpoint that it goes on from, if any.

    The folder of a run that goes on is locked until the stack is left.
    """
    if run.config.exists() if resume else broadcast_int(is_restart(run)):
        if rank_and_size()[0] == 0:
            stack.enter_context(lock_folder(run.path, HOLDER))
        checkpoint = read_checkpoint(run)
        if match_channels:
            config = with_channels(config, checkpoint.settings.model.image_channels)
        return settings_to_go_on(config, checkpoint, force=force), checkpoint
    check_new_run(run, config)
    if resume:
        LOG.info("%s: there is no run in %s to resume: it begins here", config.role, run.path)
    return replace(config, schedule_from=0), None


def is_restart(run: RunFolder) -> bool:
    """Whether torchrun starts its processes again, and the run was begun by the same torchrun."""
    restarted = from_torchrun("TORCHELASTIC_RESTART_COUNT", 0) > 0
    if not (restarted and run.can_resume() and run.log.is_file()):
        return False
    starts = [entry for entry in run.read_log() if entry["event"] == "start"]
    return bool(starts) and starts[-1].get("launch") == launch()


def begin_folder(
    run: RunFolder, state: TrainState, image_size: tuple[int, int], stack: contextlib.ExitStack
) -> None:
    """Write the first checkpoint of a new run: a folder with settings can always be resumed."""
    if rank_and_size()[0] == 0:
        stack.enter_context(lock_folder(run.path, HOLDER))
        check_new_run(run, state.config)
        save_checkpoint(run, state, image_size)


def initial_network(config: TrainConfig) -> PixelCNNpp | None:
    """The network whose weights a new run begins with, if it names one."""
    if config.init is None:
        return None
    saved = find_initial(config.init, config.role)
    check_initial(config.model, saved.config, config.init)
    return saved.load()


def check_new_run(run: RunFolder, config: TrainConfig) -> None:
    """Raise ValueError for a folder that cannot be, that has a run, or is of training images."""
    check_writable(run.config)
    if run.config.exists():
        raise ValueError(
            f"{run.path} already holds a run; go on with it by `resume=True` or choose another "
            "folder"
        )
    if config.data_dir is None or config.data != "folder":
        return
    own, data = (Path(os.path.realpath(path)) for path in (run.path, config.data_dir))
    if own.is_relative_to(data):
        raise ValueError(
            f"{run.path} lies in the data's folder {config.data_dir}, where its samples would "
            "become training images; choose another folder"
        )


def load_data(config: TrainConfig, *, progress: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the data set that `config` names.

    progress: whether rank 0 shows how far it is. All processes call this.
    """
    rank = rank_and_size()[0]

    def load(split: str) -> ImageDataset:
        with reading(split) if progress and rank == 0 else contextlib.nullcontext() as show:
            dataset = load_dataset(
                config.data,
                split,
                config.data_dir,
                download=config.download,
                image_size=config.image_size,
                progress=show,
            )
        return dataset if config.labels is None else with_labels(dataset, Path(config.labels))

    if not config.download:
        return load("train"), load("test")
    # Rank 0 downloads, then the first process of each machine without these files. The rest read.
    mine = (rank > 0) + (from_torchrun("LOCAL_RANK", 0) > 0)
    for turn in range(3):
        if turn == mine:
            sets = load("train"), load("test")
        barrier()
    return sets


def with_channels(config: TrainConfig, channels: int) -> TrainConfig:
    """The settings with another image_channels of the model; colour has no atom for every byte."""
    grey = channels == 1 or config.model.atoms != "all"
    # With features, and without those atoms, networks for colour are worse (docs/decisions/013).
    bytes_: dict[str, Any] = {} if grey else {"atoms": (), "fourier_features": 0}
    return replace(config, model=replace(config.model, image_channels=channels, **bytes_))


def with_data(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset, match_channels: bool
) -> TrainConfig:
    """The settings with the classes, and with `match_channels` the channels, of the data.

    Raises ValueError for data that do not fit, or differ between the processes.
    """
    for dataset in (train_set, test_set):
        if not all_same(int(dataset.digest[:15], 16)):
            raise ValueError(
                f"rank {rank_and_size()[0]}: the processes read different {dataset.split} images, "
                f"here {len(dataset):,} of {dataset.source}: all must see the same (a random "
                "transform of images given in Python belongs into transform=)"
            )
    if match_channels:
        config = with_channels(config, test_set.image_channels)
    if test_set.image_channels != config.model.image_channels:
        raise ValueError(
            f"`{'init' if config.init else 'image_channels'}` must fit the images "
            f"{'given' if config.data == OWN else f'of {config.data}'}, which have "
            f"{test_set.image_channels} channels, not {config.model.image_channels}"
        )
    if config.model.n_classes == "auto":
        if train_set.labels is None:
            raise ValueError(
                f'`n_classes` cannot be "auto": {train_set.source} has no labels to count'
            )
        n_classes = len(train_set.class_names) or 1 + int(train_set.labels.max())
        config = replace(config, model=replace(config.model, n_classes=n_classes))
    n_classes = config.model.condition_size
    names = train_set.class_names if n_classes else ()
    if len(names) not in (0, n_classes):
        raise ValueError(
            f"`n_classes` must be {len(names)}, for the classes {', '.join(names)} of "
            f"{train_set.source}, or 0, got {n_classes}"
        )
    for dataset in (train_set, test_set):
        dataset.labels_for(n_classes)
    return replace(config, model=replace(config.model, class_names=names))
