"""The log of a training run, for programs and for people: losses, evaluations, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import ImageDataset
from ..data.pictures import save_grid
from ..files import open_to_append
from ..nn import PixelCNNpp
from ..pretrained.runs import (
    End,
    HeldOut,
    Interrupted,
    LogEntry,
    RunFolder,
    Start,
    Step,
    entry_line,
)
from ..progress import LINE_SECONDS, LOG, Bar, clock, progress_bar, significant
from .step import StepResult, TrainState, total_images


class Evaluation(NamedTuple):
    """Bits/dim of held-out images during a run, as `on_evaluation` gets them.

    model: the averaged weights, which training changes afterwards: copy.deepcopy keeps them.
    samples: images that it drew, (N, C, H, W). Early in training some diverge and are not finite.
    """

    images_seen: int
    bits_per_dim: float
    samples: Tensor
    model: PixelCNNpp


OnEvaluation = Callable[[Evaluation], object]
RECORD_SECONDS = 1.0


def loss_name(config: TrainConfig) -> str:
    """The quantity that the loss of a run measures, in bits/dim, with its likelihood."""
    pixels = {"noisy": "x~", "denoiser": "x given x~", "plain": "x"}[config.role]
    return f"bits/dim of {pixels} ({config.model.likelihood})"


def tensorboard(folder: str | Path) -> OnEvaluation:
    """A function for `on_evaluation` that writes bits/dim and samples as TensorBoard's event files.

    Raises ModuleNotFoundError without the extra of that name.
    """
    from torch.utils.tensorboard import SummaryWriter

    def write(evaluation: Evaluation) -> None:
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("bits_per_dim", evaluation.bits_per_dim, evaluation.images_seen)
            if evaluation.samples.isfinite().all():
                pixels = (evaluation.samples.clamp(-1, 1) + 1) / 2
                writer.add_images("samples", pixels, evaluation.images_seen)

    return write


class RunLog(ExitStack):
    """Writes log and pictures of a run, and tells the logger or a bar."""

    def __init__(
        self,
        folder: RunFolder,
        state: TrainState,
        test_set: ImageDataset,
        on_evaluation: OnEvaluation | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.folder, self.state, self.on_evaluation = folder, state, on_evaluation
        self.loss_name, self.total = loss_name(state.config), total_images(state.config)
        self.first_image = state.images_seen
        self.losses: list[float] = []
        self.started = self.recorded = self.printed = time.monotonic()
        is_cut = folder.log.is_file() and folder.log.read_bytes()[-1:] not in (b"", b"\n")
        self.file = self.enter_context(open_to_append(folder.log))
        self.file.write("\n" * is_cut)  # a line was cut by a crash
        held_out = replace(test_set, labels=None).digest
        self.write(Start(*self.place(), self.total, self.loss_name, held_out))
        role = state.config.role
        self.bar: Bar | None = None
        if progress:
            self.bar = self.enter_context(progress_bar(role, self.total, self.first_image))

    def begin(self, test_set: ImageDataset) -> None:
        """Tell what is trained."""
        for line in run_header(self.state, test_set):
            self.say(line)

    def interrupt(self) -> None:
        """Record that a signal stopped the run, which is saved."""
        self.write(Interrupted(*self.place()))
        self.say(f"stopped at {self.state.images_seen:,} of {self.total:,} images and saved")

    def end(self) -> None:
        """Record that the run has finished."""
        self.write(End(*self.place()))
        self.say(f"wrote {self.folder.weights}")

    def steps(self, results: Sequence[StepResult]) -> None:
        """Note the updates since the last call."""
        self.losses += [result.loss for result in results]
        now, seen = time.monotonic(), self.state.images_seen
        if now - self.recorded < RECORD_SECONDS and seen < self.total:
            return
        mean = sum(self.losses) / len(self.losses)
        speed = (seen - self.first_image) / (now - self.started)
        left = max(0, self.total - seen) / speed
        self.losses.clear()
        self.recorded = now
        norm, rate = round(results[-1].gradient_norm, 4), results[-1].learning_rate
        self.write(Step(*self.place(), round(mean, 5), round(speed, 4), norm, rate))
        text = f"{mean:.3f} {self.loss_name} · {significant(speed)} img/s · {clock(left)} left"
        if self.bar is not None:
            self.bar(seen, self.total, text)
        elif now - self.printed >= LINE_SECONDS or seen >= self.total:
            self.printed = now
            self.say(f"{seen:,}/{self.total:,} images · {text}")

    def evaluation(self, evaluation: Evaluation) -> None:
        """Note an evaluation of held-out images, draw its samples, and tell `on_evaluation`."""
        seen, bits = evaluation.images_seen, evaluation.bits_per_dim
        self.write(HeldOut(*self.place(), round(bits, 5)))
        self.say(f"{seen:,} images · held out: {bits:.3f} {self.loss_name}")
        if evaluation.samples.isfinite().all():
            save_grid(evaluation.samples, self.folder.grid(seen))
        else:
            self.say(f"{seen:,} images · no picture: samples diverged, as they may early in a run")
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def say(self, text: str) -> None:
        """Tell the logger a line; a bar stays below the lines."""
        LOG.info("%s: %s", self.state.config.role, text)

    def place(self) -> tuple[int, float]:
        """The images that the run has seen, and the seconds of this call."""
        return self.state.images_seen, round(time.monotonic() - self.started, 2)

    def write(self, entry: LogEntry) -> None:
        """Add an entry to the log."""
        self.file.write(entry_line(entry))


def run_header(state: TrainState, test_set: ImageDataset) -> Iterator[str]:
    """Lines on the model, its images, the device and the precision."""
    config, train_set, device = state.config, state.train_set, state.device
    height, width = test_set.image_size
    kind = "grey" if test_set.image_channels == 1 else "RGB"
    yield (
        f"{train_set.name}: {len(train_set):,} images to train on and {len(test_set):,} held out, "
        f"{kind}, {height} x {width}; from {train_set.source}"
    )
    if classes := config.model.classes:
        yield f"{len(classes.names)} classes: {', '.join(classes.names)}"
    threads = f" (threads: {torch.get_num_threads()})" if device.type == "cpu" else ""
    size = config.batch_size // state.share  # processes
    machine = f"{device}{threads}" if size == 1 else f"{size} processes on {device.type}{threads}"
    number = sum(parameter.numel() for parameter in state.parameters)
    yield f"{number:,} parameters; {machine}, {config.precision}"
