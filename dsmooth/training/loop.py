"""The loop of a training run: from a folder and settings to finished weights."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import OWN, TrainConfig
from ..data import ImageDataset, load_dataset
from ..data.dataset import Transform
from ..data.own import OwnData, split_own
from ..distributed import (
    all_reduce_max,
    barrier,
    broadcast_int,
    distributed_map,
    from_torchrun,
    process_group,
    rank_and_size,
)
from ..files import lock_folder, save_weights
from ..machine import choose_device, use_threads
from ..nn.levels import at_level
from ..progress import lines_shown
from ..runs import RunFolder, default_folder
from ..sampling import sample_images
from .checkpoint import (
    Checkpoint,
    Lines,
    check_initial,
    go_on,
    read_initial,
    save_checkpoint,
    settings_to_go_on,
)
from .device import with_device
from .log import RECORD_SECONDS, Evaluation, OnEvaluation, RunLog, opening
from .step import READ_STEPS, TrainState, make_inputs, total_images

# Noise of evaluations never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16


@dataclass
class TrainResult:
    """How a call of `train` ended. `interrupted` is the signal's number, or None if it finished."""

    images_seen: int
    bits_per_dim: float | None
    interrupted: int | None = None


def train(
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    dataset: OwnData | None = None,
    labels: Any = None,
    transform: Transform | None = None,
    match_channels: bool = False,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    keep_snapshots: int = 0,
    on_evaluation: OnEvaluation | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train one model, or go on with `resume`, and write everything into `folder`.

    The folder, by default runs/ROLE, gets the files of a `RunFolder`. dataset: images of one's own
    instead of `config.data`: what `dsmooth.data.own_images` takes, of which one in ten is held out;
    a tuple (training images, held-out images); or splits by name. labels: of a dataset that is one
    array, whole numbers (N,) or one-hot. transform: a function of an image of the dataset, uint8
    (C, H, W), that makes one, applied at each visit in training; what it draws of the generators of
    torch, numpy and random is a function of the seed and the visit. Images may be larger than what
    it makes, held-out ones have that size and are not transformed. match_channels: take the model's
    image_channels from the data. device: "auto" (a CUDA device if there is one), "cpu", "cuda" or
    "cuda:N". threads: CPU threads, None for torch's setting; sums are rounded in another order with
    another number. tensorboard: also write event files, which needs the extra of that name.
    keep_snapshots: keep the averaged weights of the last so many scorings, each as a run folder in
    snapshots/ of the folder. on_evaluation: a function that rank 0 calls with each `Evaluation`,
    such as one that tells another logger. progress: print what is trained on what, a bar or a line
    every ten seconds, and the scores; without it, these lines go to the logger `dsmooth` at level
    INFO.

    SIGINT, SIGTERM and SIGHUP save a checkpoint and return early. `resume` begins a run where the
    folder has none, so that one call serves both. A resumed run must have the same
    settings and data. A finished one can get more images: its schedule, warm-up included, begins
    again over what is added. An exponential schedule, and that of a cooldown before the learning
    rate falls, do not depend on the number of images and go on. force: take other settings that
    differ too, from here on.

    `config.init` names a run or a pair whose weights a new run begins with, by a new optimiser.

    Under torchrun all processes call this and train together: each computes its share of every
    batch, and rank 0 writes. `folder` and the data must be there for all of them. A run that
    torchrun starts again goes on from its last checkpoint, whatever `resume` says.

    Raises ValueError or FileNotFoundError for data, settings or a folder that do not fit,
    NonFiniteLoss, naming step and seed, and ProcessLost if another process is gone.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"the first argument must be settings, got a {type(config).__name__}: dsmooth.train("
            'dsmooth.preset("mnist-quick", "noisy", images=20_000), dataset=IMAGES)'
        )
    if keep_snapshots < 0:
        raise ValueError(f"keep_snapshots must be at least 0, got {keep_snapshots}")
    run = RunFolder(default_folder(config.role) if folder is None else Path(folder))
    target = choose_device(device)
    if dataset is not None:
        config = replace(config, data=OWN, data_dir=None, download=False, image_size=None)
    with process_group(), contextlib.ExitStack() as stack:
        use_threads(threads)
        writes = rank_and_size()[0] == 0
        alone = (
            lock_folder(run.path, "another training run") if writes else contextlib.nullcontext()
        )
        restarted = from_torchrun("TORCHELASTIC_RESTART_COUNT", 0) > 0
        checkpoint: Checkpoint | None = None
        lines = Lines()
        if resume and not run.config.exists():
            lines = Lines(said=(f"there is no run in {run.path} to resume: it begins here",))
        elif resume or (restarted and run.can_resume()):
            before, _ = run.read_config()
            stack.enter_context(alone)
            if match_channels:
                config = with_channels(config, before.model.image_channels)
            config, checkpoint, lines = settings_to_go_on(run, config, force=force)
        if checkpoint is None:
            check_new_run(run, config)
        train_set, test_set = _images_of(config, dataset, labels, transform)
        config = with_data(config, train_set, test_set, match_channels)
        config = with_device(config, target, test_set.image_size)
        begins = checkpoint is None and config.init is not None
        initial = read_initial(str(config.init), config.role)[0] if begins else None
        if initial is not None:
            check_initial(config.model, initial.config, str(config.init))
        state = TrainState(config, train_set, target, initial)
        stop = stack.enter_context(catch_signals())
        if config.images is None:
            state.config = fix_images(state, test_set)
        if checkpoint is not None:
            go_on(run, checkpoint, state, force=force)
            del checkpoint  # which is as large as the weights and their moments
        elif writes:
            stack.enter_context(alone)
            check_new_run(run, config)
            # Before the settings: a folder with settings can always be resumed.
            save_checkpoint(run, state)
        log = None
        if writes:
            run.write_config(state.config, test_set.image_size)
            if progress:
                stack.enter_context(lines_shown())
            log = RunLog(run, state.config, state.images_seen, tensorboard, on_evaluation, progress)
            log.keep_snapshots = keep_snapshots
            stack.enter_context(log)
            _say_beginning(log, state, test_set, lines)
        result = _loop(state, test_set, run, log, stop)
        if log is not None and result.interrupted is None:
            pictures, size = len(run.grids()), run.weights.stat().st_size / 1e6
            beside = f" and {pictures} picture{'s' * (pictures > 1)} beside it" * (pictures > 0)
            log.say(f"wrote {run.weights} ({size:.1f} MB){beside}")
        return result


def _say_beginning(log: RunLog, state: TrainState, test_set: ImageDataset, lines: Lines) -> None:
    """Say what is trained on what, and how the run goes on."""
    about = opening(state.config, state.train_set, test_set, state.model, state.device)
    for line in (*about, *lines.said):
        log.say(line)
    for note in lines.kept:
        log.record("note", state.images_seen, text=note)
        log.say(note)


def _loop(
    state: TrainState,
    test_set: ImageDataset,
    run: RunFolder,
    log: RunLog | None,
    stop: Callable[[], int | None],
) -> TrainResult:
    """All processes run this in step; only rank 0 has a `log` and writes files."""
    config = state.config
    total, begun, n = total_images(config), config.schedule_from, config.evaluations
    marks = [begun + (total - begun) * (i + 1) // n for i in range(n)]
    bits = None
    watch = Watch(config, state.steps, stop)
    while state.images_seen < total:
        before = state.images_seen
        state.step()
        scored = any(before < mark <= state.images_seen for mark in marks)
        ended = state.images_seen >= total
        if not (scored or ended or watch.is_due(state.steps)):
            continue

        interrupted, save = watch.look(state.steps)
        readings = state.read()
        if log:
            log.steps(state.images_seen, readings)
        if scored:
            bits = _score(state, test_set, run, log)
        if interrupted or save or ended:
            if log:
                save_checkpoint(run, state)
            watch.saved = time.monotonic()
        if interrupted:
            if log:
                log.record("interrupted", state.images_seen)
                log.say(f"stopped at {state.images_seen:,} of {total:,} images and saved")
            return TrainResult(state.images_seen, bits, interrupted)
    if broadcast_int(not run.weights.exists()):  # of a finished run whose file is gone
        bits = _score(state, test_set, run, log)
    if log:
        log.record("end", state.images_seen)
    barrier()  # the others leave when all is written
    return TrainResult(state.images_seen, bits)


class Watch:
    """Decides when processes read losses and signals: each second, or after READ_STEPS steps."""

    def __init__(self, config: TrainConfig, steps: int, stop: Callable[[], int | None]) -> None:
        self.stop = stop
        self.checkpoint_seconds = 60 * config.checkpoint_minutes
        self.rank, self.size = rank_and_size()
        self.looked = self.saved = time.monotonic()
        self.steps, self.next = steps, steps + 1

    def is_due(self, steps: int) -> bool:
        """Whether to read after so many steps; a process that is alone reads on a signal too."""
        return steps >= self.next or (self.size == 1 and self.stop() is not None)

    def look(self, steps: int) -> tuple[int | None, bool]:
        """The signal that some process has got, and whether rank 0 finds a checkpoint due."""
        now = time.monotonic()
        due = now - self.saved > self.checkpoint_seconds
        seconds = min(RECORD_SECONDS, self.checkpoint_seconds)
        made = seconds * (steps - self.steps) / max(now - self.looked, 1e-9)
        pace = max(1, min(READ_STEPS, math.ceil(made)))
        mine = (int(due), pace) if self.rank == 0 else (0, 0)
        signal, due_there, pace = all_reduce_max(self.stop() or 0, *mine)
        self.looked, self.steps, self.next = now, steps, steps + pace
        return signal or None, bool(due_there)


def _score(state: TrainState, test_set: ImageDataset, run: RunFolder, log: RunLog | None) -> float:
    """Bits/dim on the held-out images; the averaged weights and a grid of samples are saved."""
    state.check_finite()
    bits = evaluate(state, test_set)
    if log is not None:
        save_weights(state.averaged, run.weights)
        samples = sample_grid(state, test_set)
        log.evaluation(Evaluation(state.images_seen, bits, samples, state.averaged))
    return bits


@torch.no_grad()
def evaluate(state: TrainState, test_set: ImageDataset) -> float:
    """Bits/dim of the averaged weights on held-out images, by all processes as by one."""
    config = state.config
    n = min(config.evaluation_images, len(test_set))
    model = state.averaged.eval()
    labels = test_set.labels_for(config.model.condition_size)

    def score(first: int) -> float:
        rows = torch.arange(first, min(first + 100, n))
        x = test_set.batch(rows).to(state.device)
        label = None if labels is None else labels[rows].to(state.device)
        inputs = make_inputs(x, config, label, first_index=first, repeat=EVALUATION_REPEAT)
        with state.autocast:
            # Not log_prob: with clean_noise a target has no values of bytes.
            log_p = model.log_prob_given(inputs.target, model(*inputs))
            return -float(log_p.double().sum())

    nats = sum(distributed_map(range(0, n, 100), score))
    return nats / (math.log(2) * n * test_set.images[0].numel())


def sample_grid(state: TrainState, test_set: ImageDataset) -> Tensor:
    """Samples of the averaged weights, for labels and noise of the first held-out images."""
    config, model = state.config, state.averaged
    if config.model.noise_levels:
        model = at_level(model, len(config.model.noise_levels) - 1)
        config = replace(config, model=replace(config.model, noise_levels=()))
    height, width = test_set.image_size
    x = test_set.batch(torch.arange(min(GRID_IMAGES, len(test_set)))).to(state.device)
    context = make_inputs(x, config, first_index=0, repeat=EVALUATION_REPEAT).context
    labels = test_set.labels_for(config.model.condition_size)
    return sample_images(
        model,
        x.shape[0],
        height=height,
        width=width,
        seed=config.seed,
        context=context,
        label=None if labels is None else labels[: x.shape[0]],
    )


def fix_images(state: TrainState, test_set: ImageDataset) -> TrainConfig:
    """Turn a budget of minutes into images and evaluations, by timing steps of a scratch copy."""
    config = state.config
    if config.budget is None:
        raise ValueError("give images= or budget=: how long is the run to be?")
    started = before = time.monotonic()
    scratch = TrainState(replace(config, images=10**9), state.train_set, state.device)
    times: list[float] = []  # that of the first step is more than its own
    while broadcast_int(len(times) < 4 or time.monotonic() - started < min(5.0, 3 * config.budget)):
        scratch.step()
        scratch.read()
        times.append(time.monotonic() - before)
        before = time.monotonic()
    before = time.monotonic()
    evaluate(scratch, test_set)
    if rank_and_size()[0] == 0:
        sample_grid(scratch, test_set)
    cost = time.monotonic() - before
    evaluations = max(1, min(config.evaluations, int(60 * config.budget / (5 * cost))))
    left = 60 * config.budget - evaluations * cost - (time.monotonic() - started)
    evaluations = broadcast_int(evaluations)
    steps = broadcast_int(max(1, int(left / statistics.median(times[1:]))))
    return replace(config, images=steps * config.batch_size, evaluations=evaluations)


def check_new_run(run: RunFolder, config: TrainConfig) -> None:
    """Raise ValueError for a file, a folder with a run, and one of training images."""
    if run.path.exists() and not run.path.is_dir():
        raise ValueError(f"{run.path} must be a folder for the run, and is a file: choose another")
    if run.config.exists():
        raise ValueError(
            f"{run.path} already holds a run; go on with it by resume=True, or choose another "
            "folder"
        )
    if config.data_dir is None or config.data not in ("folder", "celeba"):
        return
    if run.path.resolve().is_relative_to(Path(config.data_dir).resolve()):
        raise ValueError(
            f"{run.path} lies in the data's folder {config.data_dir}, where its samples would "
            "become training images; choose another folder"
        )


def load_data(config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the data set that `config` names."""
    how: dict[str, Any] = {"download": config.download, "image_size": config.image_size}
    train_set = load_dataset(config.data, "train", config.data_dir, **how)
    return train_set, load_dataset(config.data, "test", config.data_dir, **how)


def _images_of(
    config: TrainConfig, dataset: OwnData | None, labels: Any, transform: Transform | None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images: those given in Python, else of the data set that is named."""
    if dataset is not None:
        return split_own(dataset, labels, transform)
    if labels is not None or transform is not None:
        name = "labels" if transform is None else "transform"
        raise ValueError(
            f"{name}= is for images given by dataset=, such as tuple(dsmooth.data.load_dataset("
            '"mnist", split) for split in dsmooth.data.SPLITS)'
        )
    return load_data(config)


def with_channels(config: TrainConfig, channels: int) -> TrainConfig:
    """The settings with another image_channels of the model; colour has no atom for every byte."""
    grey = channels == 1 or config.model.atoms != "all"
    # With features, and without those atoms, networks for colour are worse (docs/decisions/013).
    bytes_: dict[str, Any] = {} if grey else {"atoms": (), "fourier_features": 0}
    return replace(config, model=replace(config.model, image_channels=channels, **bytes_))


def with_data(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset, match_channels: bool
) -> TrainConfig:
    """The settings with n_classes, and with `match_channels` the channels, of the data."""
    if match_channels:
        config = with_channels(config, test_set.image_channels)
    if test_set.image_channels != config.model.image_channels:
        own = config.model.image_channels
        raise ValueError(
            f"{config.data} has {test_set.image_channels} channels, but "
            + (
                f"the weights of {config.init} are for images of {own}"
                if config.init
                else f"the model's image_channels is {own}"
            )
        )
    if config.model.n_classes == "auto":
        if train_set.labels is None:
            raise ValueError(f'n_classes="auto" needs labels, but {train_set.source} has none')
        n_classes = 1 + int(train_set.labels.max())
        config = replace(config, model=replace(config.model, n_classes=n_classes))
    for dataset in (train_set, test_set):
        dataset.labels_for(config.model.condition_size)
    return config


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGINT, SIGTERM and SIGHUP only set what the yielded function returns."""
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # nobody sends them to others
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                previous = signal.signal(number, lambda number, frame: received.append(number))
                stack.callback(signal.signal, number, previous)
        yield lambda: received[0] if received else None
