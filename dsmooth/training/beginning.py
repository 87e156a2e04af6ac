"""The beginning of a run: its folder, its images, its first weights or its checkpoint."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ..config import ModelConfig, Role, TrainConfig
from ..data import SPLITS, ImageDataset, load_splits
from ..data.reading import with_labels
from ..distributed import (
    all_reduce_max,
    barrier,
    broadcast_int,
    from_torchrun,
    launch,
    rank_and_size,
)
from ..fields import flatten
from ..files import check_writable, lock_folder
from ..nn import PixelCNNpp
from ..pretrained import SavedNetwork, resolve
from ..progress import LOG, reading
from ..runs import RunFolder
from .checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from .settings import changes
from .step import TrainState, total_images

HOLDER = "another training run"  # of the lock of a folder


def find_checkpoint(
    run: RunFolder, config: TrainConfig, stack: contextlib.ExitStack, *, resume: bool
) -> Checkpoint | None:
    """The checkpoint that a run goes on from, None for a new run.

    The folder of a run that goes on is locked until the stack is left. Raises ValueError for a
    folder in which a new run cannot begin.
    """
    if run.config.exists() if resume else broadcast_int(is_restart(run)):
        if rank_and_size()[0] == 0:
            stack.enter_context(lock_folder(run.path, HOLDER))
        return read_checkpoint(run)
    check_new_run(run, config)
    if resume:
        LOG.info("%s: there is no run in %s to resume: it begins here", config.role, run.path)
    return None


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


def check_initial(model: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    # Classes that are not the other run's begin with its label of zeros.
    free = {"dropout", "likelihood", "smoothing_scale", "n_classes", "class_names", *model.unused}
    new, old = flatten(asdict(model)), flatten(asdict(initial))
    other = [name for name in new if name not in free and new[name] != old[name]]
    if other:
        values = ", ".join(f"{name} {old[name]}, not {new[name]}" for name in other)
        named = " and ".join(f"`{name}`" for name in other)
        raise ValueError(f"`init` {source} has {values}: take its {named}")


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


def check_new_run(run: RunFolder, config: TrainConfig) -> None:
    """Raise ValueError for a folder that cannot be, that has a run, or is of training images."""
    check_writable(run.config)
    if config.images is None and config.budget is None:
        raise ValueError("`images` or `budget` must be given: how long is the run to be?")
    if run.config.exists():
        raise ValueError(
            f"{run.path} already holds a run; go on with it by `resume=True` or choose another "
            "folder"
        )
    if config.data_dir is None or config.data != "folder":
        return
    images = Path(os.path.realpath(config.data_dir))
    if Path(os.path.realpath(run.path)).is_relative_to(images):
        raise ValueError(
            f"{run.path} lies in the data's folder {config.data_dir}, where its samples would "
            "become training images; choose another folder"
        )


def load_data(config: TrainConfig, *, progress: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the data set that `config` names.

    progress: whether rank 0 shows how far it is. All processes call this.
    """
    rank = rank_and_size()[0]

    def load() -> tuple[ImageDataset, ImageDataset]:
        with reading() if progress and rank == 0 else contextlib.nullcontext() as show:
            train, test = load_splits(
                config.data,
                SPLITS,
                config.data_dir,
                download=config.download,
                image_size=config.image_size,
                progress=show,
            )
        if config.labels is not None:
            return with_labels(train, Path(config.labels)), with_labels(test, Path(config.labels))
        return train, test

    if not config.download:
        return load()
    # Rank 0 downloads, then the first process of each machine without these files. The rest read.
    own_turn = (rank > 0) + (from_torchrun("LOCAL_RANK", 0) > 0)
    for turn in range(3):
        if turn == own_turn:
            sets = load()
        barrier()
    return sets


def go_on(
    run: RunFolder, checkpoint: Checkpoint, state: TrainState, *, force: bool = False
) -> list[str]:
    """Continue from a checkpoint, which must be the same for all processes; notes for the log."""
    path, seen = checkpoint.path, checkpoint.images_seen
    notes = [*changes(checkpoint.settings, state.config, seen)]
    images = state.train_set
    if checkpoint.data != images.digest:
        now = "other images, or in another order"
        before = f"on other images than the {len(images):,} of {images.source}, or in another order"
        if checkpoint.data == replace(images, transform=None).digest:
            before, now = "without a transform", "a transform"
        elif checkpoint.data == replace(images, transform=Tensor.clone).digest:
            before, now = "with a transform", "no transform"
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
