"""A training run: from settings and a folder to finished weights."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..nn.weights import weights_digest
from ..pretrained.log import End, Interrupted
from ..pretrained.runs import WeightsSettings
from ..progress import lines_shown
from ..work import once, workers
from .checkpoint import Checkpoint, restore, save_checkpoint
from .evaluation import evaluate, sample_grid
from .log import Evaluation, OnEvaluation, RunLog
from .plan import Plan, resolve
from .step import READ_STEPS, TrainState, total_images

CHECKPOINT_SECONDS = 120.0  # between checkpoints
RECORD_SECONDS = 1.0  # between reads of the loss


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
    dataset: Any = None,
    labels: Any = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    threads: int | None = None,
    on_evaluation: OnEvaluation | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train one model, or resume its run, and write a `RunFolder`, by default runs/ROLE.

    dataset: images to use instead of the data set `config.data`: anything that
    `dsmooth.data.own_images` takes or returns, with one image in ten held out; or a tuple (training
    images, held-out images). labels: a label for each image, if dataset is one array.
    device: "auto" (a CUDA device if there is one), "cpu", "cuda" or "cuda:N". threads: CPU threads,
    None for torch's setting; their number changes results by rounding. on_evaluation: a function
    that the first process calls with each `Evaluation`, such as
    `dsmooth.training.tensorboard(FOLDER)`. progress: print the INFO messages of the logger
    `dsmooth`, and a progress bar.

    The images decide the channels of the network, and its classes if `config.classes`; a budget of
    minutes becomes a number of images. SIGINT, SIGTERM and SIGHUP save a checkpoint and return
    early. `resume` continues the run in the folder, bit for bit, or starts one if there is none: it
    must have the same images and settings, except those in `RunSettings`. `config.init` names a run
    or a pair: a new run begins with its weights and a new optimiser.

    Under torchrun all processes call this and train together: each computes its share of every
    batch, and the first one writes. All need access to `folder` and the data.

    Raises ValueError or FileNotFoundError if data, settings or folder are wrong; NonFiniteLoss,
    which names the step and the seed; ProcessLost if another process ended.
    """
    with (
        workers(threads),
        torch.inference_mode(False),  # a notebook may have turned gradients off
        torch.enable_grad(),
        lines_shown() if progress else contextlib.nullcontext(),
        resolve(config, folder, dataset, labels, resume, device) as plan,
        catch_signals() as stop,
    ):
        state = begin(plan)
        with RunLog(plan.run, state, plan.test_set, on_evaluation, progress) as log:
            return run_loop(state, plan, log, stop)


def begin(plan: Plan) -> TrainState:
    """The state that a run begins or continues with. From now on it can be resumed."""
    initial = None if isinstance(plan.start, Checkpoint) else plan.start
    state = TrainState(plan.config, plan.train_set, plan.device, initial)
    if isinstance(plan.start, Checkpoint):
        restore(plan.run, state, plan.start)
    else:
        once(save_checkpoint, plan.run, state)
    once(plan.run.write_config, plan.config, plan.test_set.image_size)
    return state


def run_loop(
    state: TrainState, plan: Plan, log: RunLog, stop: Callable[[], int | None]
) -> TrainResult:
    """Train, evaluate and save until the end or a signal; all processes in lockstep."""
    run, evaluations, bits, interrupted = plan.run, evaluations_due(state), None, 0
    saved = last_read = time.monotonic()
    while state.images_seen < total_images(state.config):
        state.step()
        now, due = time.monotonic(), evaluations_due(state)
        facts = (
            stop() or 0,
            now - saved > CHECKPOINT_SECONDS,
            now - last_read > RECORD_SECONDS or state.steps - state.steps_read == READ_STEPS,
        )
        # If any process finds something due, all do it.
        interrupted, save, read = state.group.most(facts)
        if due == evaluations and not (interrupted or save or read):
            continue

        last_read = now
        log.steps(state.results())
        if due > evaluations:
            bits = _evaluate(state, plan, log)
        elif interrupted or save:
            once(save_checkpoint, run, state)
        evaluations, saved = due, now if save else saved
        if interrupted:
            log.write(Interrupted)
            log.say(f"stopped at {state.images_seen:,} of {log.total:,} images and saved")
            break
    else:
        # If nothing was left to train, the saved weights may be of an earlier step, or be missing.
        if not once(run.is_evaluated, state.images_seen):
            bits = _evaluate(state, plan, log)
        log.write(End)
        log.say(f"wrote {run.weights}")
    state.group.gather(None)  # the other processes wait until all is written
    return TrainResult(state.images_seen, bits, interrupted or None)


def evaluations_due(state: TrainState) -> int:
    """The number of evaluations that a run has made by now; the last one is at its end."""
    length, n = total_images(state.config), state.config.evaluations
    return sum(length * (i + 1) // n <= state.images_seen for i in range(n))


def _evaluate(state: TrainState, plan: Plan, log: RunLog) -> float:
    """Bits/dim on the held-out images; the averaged weights, a grid and the run are saved.

    The run is saved last: one that is killed before that makes the evaluation again.
    """
    state.check_finite()
    run, test_set = plan.run, plan.test_set
    bits, components = evaluate(state, test_set)
    settings = WeightsSettings.of_run(
        state.config,
        test_set.image_size,
        weights_sha256=weights_digest(state.averaged),
        data_sha256=replace(state.train_set, labels=None).digest,
        images=state.images_seen,
        seconds=run.seconds(),
        loss=log.loss_name,
        bits_per_dim=bits,
    )
    once(run.write_weights, {state.config.role: state.averaged}, settings)
    samples = sample_grid(state, test_set)
    log.evaluation(Evaluation(state.images_seen, bits, samples, state.averaged), components)
    once(save_checkpoint, run, state)
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
