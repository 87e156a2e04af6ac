"""The loop of a training run: from a folder and settings to finished weights."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..config import OWN, TrainConfig
from ..data import ImageDataset
from ..data.dataset import Transform
from ..data.own import split_own
from ..distributed import (
    all_reduce_max,
    barrier,
    broadcast_int,
    distributed_map,
    process_group,
    rank_and_size,
)
from ..files import lock_folder, write_tensors
from ..machine import choose_device, keep_freed_memory, use_threads
from ..progress import LOG, lines_shown
from ..runs import RunFolder, default_folder
from ..sampling import sample_images
from .beginning import check_new_run, initial_network, is_restart, load_data, run_settings
from .checkpoint import go_on, newest_checkpoint, save_checkpoint, settings_to_go_on
from .log import RECORD_SECONDS, Evaluation, OnEvaluation, RunLog, opening
from .step import READ_STEPS, TrainState, make_inputs, total_images

# Noise of evaluations never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16
HOLDER = "another training run"  # of the lock of a folder


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
    dataset: Sized | None = None,
    labels: object = None,
    transform: Transform | None = None,
    match_channels: bool = False,
    rgb: TrainConfig | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | torch.device = "auto",
    threads: int | None = None,
    on_evaluation: OnEvaluation | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train one model, or go on with `resume`, and write a `RunFolder`, by default runs/ROLE.

    dataset: images to train on instead of `config.data`: anything that `dsmooth.data.own_images`
    takes, one in ten of which is held out; a tuple (training images, held-out images); or splits by
    name. labels: whole numbers (N,), one-hot or names, for a dataset that is one array. transform:
    a function from an image of the dataset, uint8 (C, H, W), to another, applied at each visit in
    training; its random numbers, from torch, numpy or random, depend on the seed and the visit
    alone. Held-out images are not transformed and must have the size that it makes. match_channels:
    take the model's image_channels from the data. rgb: settings to take instead of `config` for RGB
    images. device: "auto" (a CUDA device if there is one), "cpu", "cuda" or "cuda:N". threads: CPU
    threads, None for torch's setting; their number changes roundings. on_evaluation: a function
    that rank 0 calls with each `Evaluation`, such as `dsmooth.training.tensorboard(FOLDER)`.
    progress: print what the logger `dsmooth` gets as INFO, and a bar.

    SIGINT, SIGTERM and SIGHUP save a checkpoint and return early. `resume` begins a run where the
    folder has none. A resumed run must have the same settings and images, but for `RunSettings`; of
    a transform it is compared whether there is one. A finished run can get more images: its
    schedule, with the warm-up, begins again over the images that are added. force: take another
    length of a run that has not finished, and other settings, from here on. `config.init` names a
    run or a pair: a new run begins with its weights and a new optimiser.

    Under torchrun all processes call this and train together: each computes its share of every
    batch, and rank 0 writes. `folder` and the data must be there for all of them. A run whose
    processes torchrun starts again goes on from its last checkpoint, whatever `resume` says.

    Raises ValueError or FileNotFoundError for data, settings or a folder that do not fit,
    NonFiniteLoss, naming step and seed, and ProcessLost if another process is gone.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"the first argument must be settings, got a {type(config).__name__}: dsmooth.train("
            'dsmooth.preset("mnist-quick", "noisy", images=20_000), dataset=IMAGES)'
        )
    for name, function in (("transform", transform), ("on_evaluation", on_evaluation)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got a {type(function).__name__}")
    if dataset is None and (labels is not None or transform is not None):
        name = "labels" if transform is None else "transform"
        raise ValueError(
            f"{name}= is for images given by dataset=, such as tuple(dsmooth.data.load_dataset("
            '"mnist", split) for split in dsmooth.data.SPLITS)'
        )
    if dataset is not None and config.labels is not None:
        raise ValueError(
            "config.labels is for images that config.data names: give (images, labels)"
        )
    run = RunFolder(default_folder(config.role) if folder is None else Path(folder))
    target = choose_device(device)

    def settings_for(channels: int) -> TrainConfig:
        """The settings for images of so many channels."""
        chosen = rgb if rgb is not None and channels == 3 else config
        if match_channels:
            chosen = with_channels(chosen, channels)
        if dataset is not None:
            chosen = replace(chosen, data=OWN, data_dir=None, download=False, image_size=None)
        return replace(chosen, schedule_from=0)  # a run that goes on has its own

    settings = settings_for(config.model.image_channels)
    with (
        process_group(),
        torch.inference_mode(False),
        torch.enable_grad(),  # a notebook that draws may have turned gradients off
        contextlib.ExitStack() as stack,
    ):
        use_threads(threads)
        keep_freed_memory()
        if target.type == "cuda":
            torch.cuda.set_device(target)
        if progress and rank_and_size()[0] == 0:
            stack.enter_context(lines_shown())
        checkpoint = None
        if run.config.exists() if resume else broadcast_int(is_restart(run)):
            if rank_and_size()[0] == 0:
                stack.enter_context(lock_folder(run.path, HOLDER))
            checkpoint = newest_checkpoint(run)
            settings = settings_for(checkpoint.settings.model.image_channels)
            settings = settings_to_go_on(settings, checkpoint, force=force)
        else:
            check_new_run(run, settings)
            if resume:
                LOG.info("%s: no run in %s to resume: it begins here", config.role, run.path)
        train_set, test_set = (
            load_data(settings, progress=progress)
            if dataset is None
            else split_own(dataset, labels, transform)
        )
        if checkpoint is None:
            settings = settings_for(test_set.image_channels)
        settings = run_settings(settings, train_set, test_set, target)
        initial = initial_network(settings) if checkpoint is None else None
        stop = stack.enter_context(catch_signals())
        if settings.images is None:
            settings = fix_images(settings, train_set, test_set, target)
        state = TrainState(settings, train_set, target, initial)
        if checkpoint is None and rank_and_size()[0] == 0:
            stack.enter_context(lock_folder(run.path, HOLDER))
            check_new_run(run, settings)
            save_checkpoint(run, state, test_set.image_size)  # what has settings can be resumed
        notes = go_on(checkpoint, state, force=force) if checkpoint else []
        del checkpoint  # which is as large as the weights and their moments
        log = None
        if rank_and_size()[0] == 0:
            log = stack.enter_context(RunLog(run, state, on_evaluation, progress))
            for line in opening(state, test_set):
                log.say(line)
            for note in notes:
                log.record("note", text=note)
                log.say(note)
        result = _loop(state, test_set, run, log, stop)
        if log is not None and result.interrupted is None:
            log.say(f"wrote {run.weights} ({run.weights.stat().st_size / 1e6:.1f} MB)")
        return result


def with_channels(config: TrainConfig, channels: int) -> TrainConfig:
    """The settings with another image_channels of the model; colour has no atom for every byte."""
    model = config.model
    if channels != 1 and model.atoms == "all":
        # With features and without those atoms, networks for colour are worse (experiment 013).
        model = replace(model, atoms=(), fourier_features=0)
    return replace(config, model=replace(model, image_channels=channels))


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
    saved = looked = time.monotonic()
    while state.images_seen < total:
        before = state.images_seen
        state.step()
        now = time.monotonic()
        evaluated = any(before < mark <= state.images_seen for mark in marks)  # the last is the end
        # What one process finds due is due for all.
        interrupted, save, look = all_reduce_max(
            stop() or 0,
            now - saved > 60 * config.checkpoint_minutes,
            now - looked > RECORD_SECONDS or state.steps - state.steps_read == READ_STEPS,
        )
        if not (evaluated or interrupted or save or look):
            continue

        looked = now
        readings = state.read()
        if log:
            log.steps(readings)
        if evaluated:
            bits = _evaluate(state, test_set, run, log)
        elif log and (interrupted or save):
            save_checkpoint(run, state, test_set.image_size)
        if save:
            saved = now
        if interrupted:
            if log:
                log.record("interrupted")
                log.say(f"stopped at {state.images_seen:,} of {total:,} images and saved")
            return TrainResult(state.images_seen, bits, interrupted)
    # With nothing left to train the weights may be of fewer images, or have been removed.
    if broadcast_int(log is not None and not run.is_evaluated(state.images_seen)):
        bits = _evaluate(state, test_set, run, log)
    if log:
        log.record("end")
    barrier()  # the others leave when all is written
    return TrainResult(state.images_seen, bits)


def _evaluate(
    state: TrainState, test_set: ImageDataset, run: RunFolder, log: RunLog | None
) -> float:
    """Bits/dim on the held-out images; the run, the averaged weights and a grid are saved."""
    state.check_finite()
    bits = evaluate(state, test_set)
    if log is not None:
        save_checkpoint(run, state, test_set.image_size)
        write_tensors(run.weights, state.averaged.state_dict(), {})
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

    def nats_of(first: int) -> float:
        indices = torch.arange(first, min(first + 100, n))
        x = test_set.batch(indices).to(state.device)
        label = None if labels is None else labels[indices].to(state.device)
        inputs = make_inputs(x, config, label, first_index=first, repeat=EVALUATION_REPEAT)
        with state.autocast:
            # Not log_prob: with clean_noise a target has no values of bytes.
            log_p = model.log_prob_given(inputs.target, model(*inputs))
            return -float(log_p.double().sum())

    nats = sum(distributed_map(range(0, n, 100), nats_of))
    return nats / (math.log(2) * n * test_set.images[0].numel())


def sample_grid(state: TrainState, test_set: ImageDataset) -> Tensor:
    """Samples of the averaged weights, for labels and noise of the first held-out images."""
    config = state.config
    height, width = test_set.image_size
    x = test_set.batch(torch.arange(min(GRID_IMAGES, len(test_set)))).to(state.device)
    context = make_inputs(x, config, first_index=0, repeat=EVALUATION_REPEAT).context
    labels = test_set.labels_for(config.model.condition_size)
    return sample_images(
        state.averaged,
        x.shape[0],
        height=height,
        width=width,
        seed=config.seed,
        context=context,
        label=None if labels is None else labels[: x.shape[0]],
    )


def fix_images(
    config: TrainConfig, train_set: ImageDataset, test_set: ImageDataset, device: torch.device
) -> TrainConfig:
    """Turn a budget of minutes into images and evaluations, by timing steps of a scratch state."""
    assert config.budget is not None
    started = time.monotonic()
    scratch = TrainState(replace(config, images=10**9), train_set, device)
    ends: list[float] = []  # of steps; the first step compiles and fills caches
    while broadcast_int(len(ends) < 4 or time.monotonic() - started < min(5.0, 3 * config.budget)):
        scratch.step()
        scratch.read()
        ends.append(time.monotonic())
    evaluate(scratch, test_set)
    if rank_and_size()[0] == 0:
        sample_grid(scratch, test_set)
    cost = time.monotonic() - ends[-1]
    evaluations = max(1, min(config.evaluations, int(60 * config.budget / (5 * cost))))
    left = 60 * config.budget - evaluations * cost - (time.monotonic() - started)
    evaluations = broadcast_int(evaluations)
    steps = broadcast_int(max(1, int(left / statistics.median(b - a for a, b in pairwise(ends)))))
    del scratch
    gc.collect()  # it refers to itself, and a GPU may not hold it beside the state of the run
    return replace(config, images=steps * config.batch_size, evaluations=evaluations)


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block the yielded function returns the first SIGINT, SIGTERM or SIGHUP, if any."""
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # nobody sends them to others
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                previous = signal.signal(number, lambda number, frame: received.append(number))
                stack.callback(signal.signal, number, previous)
        yield lambda: received[0] if received else None
