"""The beginning of a run: its folder, its images, its first weights."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

from ..config import DERIVED, ModelConfig, Role, TrainConfig
from ..data import SPLITS, ImageDataset, load_splits
from ..data.reading import with_labels
from ..distributed import barrier, from_torchrun, rank_and_size
from ..errors import SettingError
from ..fields import flatten
from ..files import check_writable
from ..nn import PixelCNNpp
from ..pretrained import Loaded, load
from ..runs import RunFolder


def initial_network(config: TrainConfig) -> PixelCNNpp | None:
    """The network whose weights a new run begins with, if it names one."""
    if config.init is None:
        return None
    network = find_initial(config.init, config.role).networks[config.role]
    check_initial(config.model, network.config, config.init)
    return network


def check_initial(model: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    # Classes that are not the other run's begin as images without a class.
    free = {"dropout", "likelihood", *DERIVED, *model.unused}
    new, old = (flatten(asdict(replace(c, classes=None))) for c in (model, initial))
    other = [name for name in new if name not in free and new[name] != old[name]]
    if other:
        values = ", ".join(f"{name} {old[name]}, not {new[name]}" for name in other)
        remedy = {name: old[name] for name in other}
        raise SettingError("init", f"{source} has {values}: set", **remedy)


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
        raise SettingError(("images", "budget"), "are both missing: give one of them")
    if run.config.exists():
        raise SettingError(
            (), f"{run.path} already holds a run: choose another folder or set", resume=True
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
