"""The loop of a training run: from a folder and settings to finished weights."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from typing_extensions import Unpack

from ..config import OWN, TrainConfig
from ..data import ImageDataset
from ..data.dataset import Transform
from ..data.own import split_own
from ..distributed import all_reduce_max, barrier, broadcast_int, process_group, rank_and_size
from ..files import lock_folder, write_tensors
from ..machine import choose_device, torch_threads
from ..memory import keep_freed_memory
from ..progress import LOG, lines_shown
from ..runlog import LogEntry
from ..runs import RunFolder, default_folder
from .beginning import check_new_run, load_data
from .budget import Deadline
from .checkpoint import newest_checkpoint, restore, save_checkpoint
from .evaluation import evaluate, sample_grid
from .log import RECORD_SECONDS, Evaluation, OnEvaluation, RunLog
from .resolve import LoadImages, RunRequest, resolve
from .step import READ_STEPS, TrainState, total_images

HOLDER = "another training run"  # names the holder of a folder's lock in error messages


@dataclass
class TrainResult:
    """How a call of `train` ended. `interrupted` is the signal's number, or None if it finished."""

    images_seen: int
    bits_per_dim: float | None
    interrupted: int | None = None


class OwnImages(TypedDict, total=False):
    """Images to train on in place of `config.data`: arguments of `train`.

    dataset: anything that `dsmooth.data.own_images` takes or returns, with one image in ten held
    out; a tuple (training images, held-out images); or splits by name. labels, transform: as in
    `own_images`, labels for a dataset that is one array. match_channels: take the model's
    image_channels from the images.
    """

    dataset: Sized | None
    labels: Any
    transform: Transform | None
    match_channels: bool


def train(
    config: TrainConfig,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    device: str | torch.device = "auto",
    threads: int | None = None,
    on_evaluation: OnEvaluation | None = None,
    progress: bool = False,
    **images: Unpack[OwnImages],
) -> TrainResult:
    """Train one model, or resume its run, and write a `RunFolder`, by default runs/ROLE.

    images (dataset, labels, transform, match_channels): see `OwnImages`. device: "auto" (a CUDA
    device if there is one), "cpu", "cuda" or "cuda:N". threads: CPU threads, None for torch's
    setting; their number changes results by rounding. on_evaluation: a function that rank 0 calls
    with each `Evaluation`, such as `dsmooth.training.tensorboard(FOLDER)`. progress: print the INFO
    messages of the logger `dsmooth`, and a progress bar.

    SIGINT, SIGTERM and SIGHUP save a checkpoint and return early. `resume` starts a run if the
    folder has none. A resumed run must have the same images and settings, except those in
    `RunSettings`; of a transform only its presence is compared. A finished run can be extended with
    more images: its schedule, with the warm-up, restarts over the added images. force: from here
    on, use another length for an unfinished run, other settings or other images. `config.init`
    names a run or a pair: a new run begins with its weights and a new optimiser.

    Under torchrun all processes call this and train together: each computes its share of every
    batch, and rank 0 writes. All need access to `folder` and the data.

    Raises ValueError or FileNotFoundError for data, settings or a folder that do not fit,
    NonFiniteLoss, naming step and seed, and ProcessLost if another process is gone.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config must be a TrainConfig, got a {type(config).__name__}: dsmooth.train("
            'dsmooth.preset("mnist-quick", "noisy", images=20_000), dataset=IMAGES)'
        )
    if on_evaluation is not None and not callable(on_evaluation):
        raise TypeError(f"on_evaluation must be a function, got a {type(on_evaluation).__name__}")
    started = time.monotonic()
    request, load = _request(config, force, progress, **images)
    with torch_threads(threads):
        return train_run(
            request,
            load,
            RunFolder(default_folder(config.role) if folder is None else folder),
            resume=resume,
            device=device,
            on_evaluation=on_evaluation,
            progress=progress,
            started=started,
        )


def _request(
    config: TrainConfig,
    force: bool,
    progress: bool,
    dataset: Sized | None = None,
    labels: Any = None,
    transform: Transform | None = None,
    match_channels: bool = False,
) -> tuple[RunRequest, LoadImages]:
    """The settings that `train` was given, and the function that reads the images."""
    if dataset is None:
        if labels is not None or transform is not None:
            name = "labels" if transform is None else "transform"
            raise ValueError(
                f"{name}= is for images given by dataset=, such as tuple(dsmooth.data.load_dataset("
                '"mnist", split) for split in dsmooth.data.SPLITS)'
            )
        return RunRequest(config, force=force), partial(load_data, progress=progress)
    if config.labels is not None:
        raise ValueError(
            "config.labels is for images that config.data names: use dataset=(images, labels)"
        )
    own = {"data": OWN, "data_dir": None, "download": False, "image_size": None}
    request = RunRequest(config, own, match_channels=match_channels, force=force)
    return request, lambda _: split_own(dataset, labels, transform)


def train_run(
    request: RunRequest,
    load: LoadImages,
    run: RunFolder,
    *,
    resume: bool,
    device: str | torch.device,
    on_evaluation: OnEvaluation | None,
    progress: bool,
    started: float,
) -> TrainResult:
    """Begin or resume a run in its folder, with the images that `load` reads, and train it.

    started: when its budget began, by time.monotonic().
    """
    target = choose_device(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())  # a notebook may have turned gradients off
        keep_freed_memory()
        if target.type == "cuda":
            torch.cuda.set_device(target)
        first = rank_and_size()[0] == 0
        if progress and first:
            stack.enter_context(lines_shown())

        checkpoint = None
        if resume and run.config.exists():
            if first:
                stack.enter_context(lock_folder(run.path, HOLDER))
            checkpoint = newest_checkpoint(run)
        else:
            check_new_run(run, request.config())
            if resume:
                role = request.config().role
                LOG.info("%s: no run in %s to resume: starting a new one", role, run.path)

        config, train_set, test_set, initial, deadline = resolve(
            request, load, target, started, checkpoint
        )
        stop = stack.enter_context(catch_signals())
        state, changes = TrainState(config, train_set, target, initial), list[LogEntry]()
        if checkpoint is not None:
            changes = restore(checkpoint, state, force=request.force)
            del checkpoint  # which is as large as the weights and their moments
        elif first:
            stack.enter_context(lock_folder(run.path, HOLDER))
            check_new_run(run, config)
            save_checkpoint(run, state, test_set.image_size)  # from now on it can be resumed

        log = None
        if first:
            log = stack.enter_context(RunLog(run, state, on_evaluation, progress))
            log.begin(test_set, changes)
        return run_loop(state, test_set, run, log, stop, deadline)


def run_loop(
    state: TrainState,
    test_set: ImageDataset,
    run: RunFolder,
    log: RunLog | None,
    stop: Callable[[], int | None],
    deadline: Deadline | None,
) -> TrainResult:
    """All processes run this in lockstep; only rank 0 has a `log` and writes files."""
    evaluations, bits = evaluations_due(state), None
    saved = last_read = time.monotonic()
    while state.images_seen < total_images(state.config):
        state.step()
        now = time.monotonic()
        evaluated = evaluations_due(state) > evaluations
        evaluations = max(evaluations, evaluations_due(state))
        # If any process finds something due, all do it.
        interrupted, save, correct, is_read_due = all_reduce_max(
            stop() or 0,
            now - saved > 60 * state.config.checkpoint_minutes,
            deadline is not None and deadline.is_due(),
            now - last_read > RECORD_SECONDS or state.steps - state.steps_read == READ_STEPS,
        )
        if not (evaluated or interrupted or save or correct or is_read_due):
            continue

        last_read = now
        results = state.results()
        if log:
            log.steps(results)
        if correct and deadline and not evaluated:
            deadline.correct(state, state.config.evaluations - evaluations)
        if evaluated:
            before = time.monotonic()
            bits = _evaluate(state, test_set, run, log)
            if deadline:
                deadline.evaluated(time.monotonic() - before)
        elif log and (interrupted or save):
            save_checkpoint(run, state, test_set.image_size)
        if save:
            saved = now
        if interrupted:
            if log:
                log.interrupt()
            return TrainResult(state.images_seen, bits, interrupted)
    # If nothing was left to train, the saved weights may be of an earlier step, or be missing.
    if broadcast_int(log is not None and not run.is_evaluated(state.images_seen)):
        bits = _evaluate(state, test_set, run, log)
    if log:
        log.end()
    barrier()  # the other processes wait until all is written
    return TrainResult(state.images_seen, bits)


def evaluations_due(state: TrainState) -> int:
    """The number of evaluations that a run has made by now; the last one is at its end."""
    begun, n = state.config.schedule_from, state.config.evaluations
    length, seen = total_images(state.config) - begun, state.images_seen - begun
    return sum(length * (i + 1) // n <= seen for i in range(n))


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


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block the yielded function returns the first SIGINT, SIGTERM or SIGHUP, if any."""
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # signals reach only this thread
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                previous = signal.signal(number, lambda number, frame: received.append(number))
                stack.callback(signal.signal, number, previous)
        yield lambda: received[0] if received else None
