"""The log of a training run, for programs and for people: losses, evaluations, progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import ImageDataset
from ..data.pictures import save_grid
from ..files import naming, open_to_append
from ..nn import PixelCNNpp
from ..pretrained.log import HeldOut, LogEntry, Start, Step, entry_line
from ..pretrained.runs import RunFolder
from ..progress import LINE_SECONDS, LOG, Bar, progress_bar
from ..text import significant
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
PIXELS = {"noisy": "x~", "denoiser": "x given x~", "plain": "x"}


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
    """Writes log and pictures of a run, and tells the logger or a bar.

    It writes in one process of a group, in which it calls `on_evaluation` too.
    """

    def __init__(
        self,
        run: RunFolder,
        state: TrainState,
        test_set: ImageDataset,
        on_evaluation: OnEvaluation | None,
        progress: bool,
    ) -> None:
        super().__init__()
        self.run, self.state, self.on_evaluation = run, state, on_evaluation
        config, self.first_image = state.config, state.images_seen
        self.total = total_images(config)
        self.loss_name = f"bits/dim of {PIXELS[config.role]} ({config.model.likelihood})"
        self.started = self.printed = time.monotonic()
        self.path = run.log if state.group.writes else Path(os.devnull)
        if self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            self.append("\n")  # a line was cut by a crash
        self.write(Start, self.total, self.loss_name, replace(test_set, labels=None).digest)
        self.bar: Bar | None = None
        if progress:
            bar = progress_bar(config.role, self.total, self.first_image)
            self.bar = self.enter_context(bar)
        for line in run_header(state, test_set):
            self.say(line)

    def steps(self, results: Sequence[StepResult]) -> None:
        """Note the updates since the last call."""
        now, seen = time.monotonic(), self.state.images_seen
        mean = sum(result.loss for result in results) / len(results)
        speed = (seen - self.first_image) / (now - self.started)
        norm, rate = round(results[-1].gradient_norm, 4), results[-1].learning_rate
        self.write(Step, round(mean, 5), round(speed, 4), norm, rate)
        left = timedelta(seconds=round(max(0, self.total - seen) / speed))
        text = f"{mean:.3f} {self.loss_name} · {significant(speed)} img/s · {left} left"
        if self.bar is not None:
            self.bar(seen, text)
        elif now - self.printed >= LINE_SECONDS or seen >= self.total:
            self.printed = now
            self.say(f"{seen:,}/{self.total:,} images · {text}")

    def evaluation(self, evaluation: Evaluation, components: float) -> None:
        """Note an evaluation of held-out images, draw its samples, and tell `on_evaluation`."""
        seen, bits = evaluation.images_seen, evaluation.bits_per_dim
        self.write(HeldOut, round(bits, 5), round(components, 3))
        self.say(f"{seen:,} images · held out: {bits:.3f} {self.loss_name}")
        if not evaluation.samples.isfinite().all():
            self.say(f"{seen:,} images · no picture: samples diverged, as they may early in a run")
        elif self.state.group.writes:
            save_grid(evaluation.samples, self.run.path / f"samples-{seen:09d}.png")
        if self.on_evaluation is not None and self.state.group.writes:
            self.on_evaluation(evaluation)

    def say(self, text: str) -> None:
        """Tell the logger a line; a bar stays below the lines."""
        LOG.info("%s: %s", self.state.config.role, text)

    def write(self, event: Callable[..., LogEntry], *values: object) -> None:
        """Add an event to the log, at the images seen and the seconds of this call."""
        seconds = round(time.monotonic() - self.started, 2)
        self.append(entry_line(event(self.state.images_seen, seconds, *values)))

    def append(self, text: str) -> None:
        """Add to the file of the log."""
        with naming(self.path), open_to_append(self.path) as file:
            file.write(text)


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
    number = sum(parameter.numel() for parameter in state.model.parameters())
    yield f"{number:,} parameters; {machine}, {config.precision}"
