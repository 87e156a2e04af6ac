"""How the settings of a run get their values, in the order of this page.

`settings_of`: those that are given, over a preset or a file. `as_stored`: what they leave open and
the run to resume has. `fill_in`: what images and device decide. `images_for_minutes`: how many
images a budget is enough for.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import DERIVED, ModelConfig, Role, TrainConfig
from ..data import SPLITS, ImageDataset, load_splits
from ..data.folder import shows_colours
from ..data.labels import with_labels
from ..fields import SettingError, flatten
from ..files import check_writable, read_json
from ..machine import has_fast_bfloat16
from ..presets import DEFAULT_PRESET, RGB_PRESET, preset, with_settings
from ..pretrained import Loaded, load
from ..pretrained.runs import RunFolder, run_config
from ..progress import LOG
from ..work import is_common, once
from .evaluation import evaluate, sample_grid
from .step import TrainState

RGB_DATA = ("cifar10", "celeba")


def settings_of(
    given: Mapping[str, Any],
    role: Role,
    run: RunFolder,
    start: str | Path | None = None,
    resume: bool = False,
) -> TrainConfig:
    """The settings given by name, over those to start from.

    start: the name of a preset, or the file of settings. None for the run to resume, if it is
    there; else for the preset that the data suggest. Weights to begin with bring their network and
    smoothing with them.
    """
    if start is None and resume and run.config.exists():
        start = run.config
    if isinstance(start, Path):
        return with_settings(run_config(read_json(start), start), {**given, "role": role})
    name, data, folder = start, given.get("data"), given.get("data_dir")
    if name is None:
        is_rgb = shows_colours(Path(folder)) if data == "folder" and folder else data in RGB_DATA
        name = RGB_PRESET if is_rgb else DEFAULT_PRESET
    data, changes = data or preset(name, role).data, dict[str, Any]()
    if data != "celeba" and not (data == "folder" and start is not None):
        changes["image_size"] = None  # these have a size of their own
    if (source := given.get("init")) is not None:
        initial = find_initial(source, role)
        if (noise := initial.smoothing) is not None:
            changes |= {"smoothing": noise.kind, "scale": noise.scale}
        # The data decide the classes.
        network = vars(initial.networks[role].config).items()
        changes |= {name: value for name, value in network if name not in DERIVED}
    return preset(name, role, **{**changes, **given})


def stored_settings(run: RunFolder, config: TrainConfig, resume: bool) -> TrainConfig | None:
    """The settings of the run to resume, or None for a new one.

    Raises ValueError for a folder that has a run already, cannot be written, or is of training
    images.
    """
    if resume and run.config.exists():
        return run.read_config()[0]
    check_writable(run.config)
    if config.images is None and config.budget is None:
        raise SettingError(("images", "budget"), "are both missing: give one of them")
    if run.config.exists() or run.weights.exists():
        words = "already holds a run or saved weights: choose another folder or, to continue a run,"
        raise SettingError((), f"{run.path} {words} set", resume=True)
    images = config.data_dir if config.data == "folder" else None
    # Not Path.resolve, which fails where links go round.
    real = Path(os.path.realpath(run.path))
    if images is not None and real.is_relative_to(os.path.realpath(images)):
        raise ValueError(
            f"{run.path} lies in the data's folder {images}, where its samples would become "
            "training images; choose another folder"
        )
    if resume:
        LOG.info("%s: no run in %s to resume: starting a new one", config.role, run.path)
    return None


def as_stored(config: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """The settings with what they leave open, precision and images, as the run to resume has it."""
    if config.precision == "auto":
        config = replace(config, precision=stored.precision)
    if config.images is None:
        budget = stored.budget if config.budget is None else config.budget
        evaluations = min(config.evaluations, stored.evaluations)  # those that fit the budget
        config = replace(config, images=stored.images, budget=budget, evaluations=evaluations)
    return config


def load_data(config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the data set that `config` names. All processes call this."""
    read = partial(load_splits, config.data, SPLITS, config.data_dir)
    if config.download:  # one process writes the files that all read
        once(lambda: len(read(True, config.image_size)))
    train, test = read(False, config.image_size)
    if config.labels is not None:
        labels = Path(config.labels)
        train, test = with_labels(train, labels), with_labels(test, labels)
    return train, test


def check_same(
    run: RunFolder, stored: TrainConfig | None, train_set: ImageDataset, test_set: ImageDataset
) -> None:
    """Raise ValueError if the processes see different folders, or read different images."""
    if not is_common((stored is None, train_set.digest, test_set.digest)):
        raise ValueError(
            f"the processes read different images, here {len(train_set):,} and {len(test_set):,} "
            f"of {train_set.source}, or see different folders: all need the same images, and "
            f"{run.path} must be one folder"
        )


def fill_in(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset, device: torch.device
) -> TrainConfig:
    """The settings with nothing left open but the images of a budget. All processes call this.

    The images decide the channels and the classes of the network, and the device the precision.
    """
    model, channels = config.model, train_set.image_channels
    if channels != 1 and model.atoms == "all":
        # Colour has no atom for every byte; with features and without those atoms its networks are
        # worse (docs/experiments/013-bytes.md).
        model = replace(model, atoms=(), fourier_features=0)
    model = replace(model, image_channels=channels)
    if config.classes:
        classes = train_set.classes(config.label_dropout)
        test_set.labels_for(classes)
        model = replace(model, classes=classes)
    precision = config.precision
    if precision == "auto":  # machines may differ
        fast = once(has_fast_bfloat16, device)
        precision = "bfloat16" if fast else "float32"
    return replace(config, model=model, precision=precision)


def images_for_minutes(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
    started: float,
) -> tuple[int, int]:
    """How many images and evaluations fit into the budget of minutes, which counts from `started`,
    by time.monotonic(). All processes call this.

    Some steps of another state and an evaluation are timed, once: the rates of a run depend on its
    number of images, so its own steps come too late.
    """
    assert config.budget is not None
    seconds = 60 * config.budget
    scratch = TrainState(replace(config, images=10**9), train_set, device)
    began, ends = time.monotonic(), list[float]()
    while once(lambda: len(ends) < 4 or ends[-1] - began < min(5.0, seconds / 20)):
        scratch.step()
        scratch.results()
        ends.append(time.monotonic())
    # The first step and picture take longer: they compile and fill caches. The mean of the other
    # steps, not their median, as on a busy machine a few steps take much of the time.
    step = (ends[-1] - ends[0]) / (len(ends) - 1)
    sample_grid(scratch, test_set)
    before = time.monotonic()
    evaluate(scratch, test_set)
    sample_grid(scratch, test_set)
    cost = time.monotonic() - before
    evaluations = max(1, min(config.evaluations, int(seconds / (5 * cost))))
    left = seconds - evaluations * cost - (time.monotonic() - started)
    # The state of the run takes about a step.
    images = max(1, round(left / step) - 1) * config.batch_size
    images, evaluations = once(lambda: (images, evaluations))
    words = "%s: a step of %s images takes %.3g s, so %.3g minutes are enough for %s images"
    LOG.info(words, config.role, config.batch_size, step, config.budget, f"{images:,}")
    del scratch
    gc.collect()  # it refers to itself, and a GPU may not hold two states
    return images, evaluations


def check_initial(model: ModelConfig, initial: ModelConfig, source: str) -> None:
    """Raise ValueError, naming the settings, for weights of a network of another architecture."""
    # Classes that are not the other run's begin as images without a class.
    free = {"dropout", "likelihood", *DERIVED}
    if model.conditioning != "concat":
        free |= {"context_layers", "context_filters"}
    new, old = (flatten(asdict(replace(c, classes=None))) for c in (model, initial))
    other = [name for name in new if name not in free and new[name] != old[name]]
    if other:
        values = ", ".join(f"{name} {old[name]}, not {new[name]}" for name in other)
        if "image_channels" in other:  # which follow from the images
            raise SettingError("init", f"{source} has {values}: choose weights for such images")
        remedy = {name: old[name] for name in other}
        raise SettingError("init", f"{source} has {values}: set", **remedy)


def find_initial(source: str, role: Role) -> Loaded:
    """The networks in `source`. ValueError without one of a role, which a new run begins with."""
    loaded = load(source)
    if role not in loaded.networks:
        roles = " and a ".join(loaded.networks)
        raise ValueError(f"{source} has a {roles} model, not a {role} one to begin with")
    return loaded
