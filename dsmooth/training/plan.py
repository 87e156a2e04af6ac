"""What a run computes, from what its caller asks for: `resolve`, and its steps in their order."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import DERIVED, OWN, TrainConfig, settled
from ..data import SPLITS, ImageDataset, load_splits
from ..data.labels import with_labels
from ..data.own import split_own
from ..fields import SettingError, difference, flatten
from ..files import check_writable
from ..machine import choose_device, has_fast_bfloat16
from ..nn import PixelCNNpp
from ..pretrained.load import weights_with
from ..pretrained.runs import RunFolder
from ..progress import LOG
from ..work import is_common, once, own_folder
from .checkpoint import FREE, Checkpoint, newest_checkpoint
from .evaluation import evaluate, sample_grid
from .step import TrainState, check_step


@dataclass(frozen=True)
class Plan:
    """A run that is computed as it stands here.

    config: nothing in it is open, and nothing "auto" but the graph. start: the weights to begin
    with, None for random ones; or the checkpoint to continue from.
    """

    config: TrainConfig
    run: RunFolder
    train_set: ImageDataset
    test_set: ImageDataset
    device: torch.device
    start: PixelCNNpp | Checkpoint | None


@contextmanager
def resolve(
    config: TrainConfig,
    folder: str | Path | None,
    dataset: Any,
    labels: Any,
    resume: bool,
    device: str | torch.device,
) -> Iterator[Plan]:
    """The plan of a run, whose folder is its own until the block ends. All processes call this.

    Arguments and errors are those of `train`. A resumed run has what its settings leave open from
    the run itself; else the images decide the network's channels and classes, the device the
    precision, and a few timed steps the images of a budget.
    """
    started, run = time.monotonic(), RunFolder(folder or Path("runs") / config.role)
    if (labels if dataset is None else config.labels) is not None:
        raise ValueError(
            "labels= is for images given by dataset=, and config.labels for those of config.data"
        )
    target = choose_device(device)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    if dataset is not None:
        config = replace(config, data=OWN, data_dir=None, download=False, image_size=None)
    check_folder(run, config, resume)
    with own_folder(run.path, "another training run"):
        checkpoint = newest_checkpoint(run) if has_run(run, resume) else None
        stored = checkpoint and (checkpoint.config or run.read_config()[0])
        config = settled(config if stored is None else as_stored(config, stored))
        data = load_data(config) if dataset is None else split_own(dataset, labels)
        check_common(run, checkpoint, *data)
        config = fill_in(config, *data, target)
        check_step(config, target)
        start: PixelCNNpp | Checkpoint | None = checkpoint
        if checkpoint is not None and stored is not None:
            check_continues(run, stored, checkpoint, config, data[0])
        else:
            start = initial_network(config)
            if config.images is None:
                config = with_images_for_budget(config, *data, target, started)
        yield Plan(config, run, *data, target, start)


def has_run(run: RunFolder, resume: bool) -> bool:
    """Whether there is a run to resume."""
    return resume and run.config.exists()


def check_folder(run: RunFolder, config: TrainConfig, resume: bool) -> None:
    """Raise ValueError for a new run without a length, and for a folder that has a run already,
    cannot be written, or is of training images."""
    if has_run(run, resume):
        return
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
    """Training and held-out images of the data set that `config` names."""
    read = partial(load_splits, config.data, SPLITS, config.data_dir)
    if config.download:  # one process writes the files that all read
        once(lambda: len(read(True, config.image_size)))
    train, test = read(False, config.image_size)
    if config.labels is not None:
        labels = Path(config.labels)
        train, test = with_labels(train, labels), with_labels(test, labels)
    return train, test


def check_common(
    run: RunFolder, checkpoint: Checkpoint | None, train_set: ImageDataset, test_set: ImageDataset
) -> None:
    """Raise ValueError if the processes read different images or checkpoints."""
    seen = None if checkpoint is None else checkpoint.images_seen
    if not is_common((seen, train_set.digest, test_set.digest)):
        at = "no checkpoint" if seen is None else f"a checkpoint at {seen:,} images"
        raise ValueError(
            f"the processes read different images, here {len(train_set):,} and {len(test_set):,} "
            f"of {train_set.source}, or different checkpoints, here {at}: all need the same "
            f"images, and {run.path} must be one folder"
        )


def fill_in(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset, device: torch.device
) -> TrainConfig:
    """The settings with what images and device decide."""
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


def check_continues(
    run: RunFolder,
    stored: TrainConfig,
    checkpoint: Checkpoint,
    config: TrainConfig,
    images: ImageDataset,
) -> None:
    """Raise ValueError, naming the first setting that differs, for another run; and for other
    images."""
    other = difference(
        asdict(replace(stored, **{n: getattr(config, n) for n in FREE})), asdict(config)
    )
    if other:
        words = f"{run.path} holds another run: {other}; to begin a new one"
    elif checkpoint.data != images.digest:
        words = (
            f"{checkpoint.path} was trained on other images than the {len(images):,} of "
            f"{images.source}, or in another order; to begin a new run"
        )
    else:
        return
    raise SettingError((), f"{words} with its weights, set", init=str(run.path))


def initial_network(config: TrainConfig) -> PixelCNNpp | None:
    """The network that a new run begins with, of `config.init`; None for random weights.

    Raises ValueError without one of the role, and, naming the settings, for another architecture.
    """
    if config.init is None:
        return None
    network = weights_with(config.init, config.role).read_weights()[0][config.role]
    model = config.model
    # Classes that are not the other run's begin as images without a class.
    free = {"dropout", "likelihood", *DERIVED}
    if model.conditioning != "concat":
        free |= {"context_layers", "context_filters"}
    new, old = (flatten(asdict(replace(c, classes=None))) for c in (model, network.config))
    other = [name for name in new if name not in free and new[name] != old[name]]
    if not other:
        return network
    values = ", ".join(f"{name} {old[name]}, not {new[name]}" for name in other)
    if "image_channels" in other:  # which follow from the images
        words = f"{config.init} has {values}: choose weights for such images"
        raise SettingError("init", words)
    raise SettingError("init", f"{config.init} has {values}: set", **{n: old[n] for n in other})


def with_images_for_budget(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
    started: float,
) -> TrainConfig:
    """The settings with the images and evaluations that fit into the budget of minutes, which
    counts from `started`, by time.monotonic().

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
    return replace(config, images=images, evaluations=evaluations)
