"""One update of a training run, and what it changes: the model, its average, its optimiser.

A step is a function of (config, images seen), which decide order, noise and dropout. So a resumed
run equals one that was never interrupted. Images, how many were seen before and the rates
are sent to the device before a step. A step reads nothing back, so it can be replayed as a CUDA
graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import ImageDataset, to_float
from ..data.batches import ImagesOnDevice, drop_labels, flips, send
from ..distributed import group
from ..fields import SettingError
from ..functional.device_words import device_words
from ..machine import autocast, torch_seed
from ..nn import PixelCNNpp
from ..nn.weights import check_tensors
from ..philox import Stream
from ..smoothing import SMOOTHINGS, GaussianSmoothing
from .optimizers import FlatParameters, Optimizer

# Muon's best angle per step, in radians, times the square root of the number of steps of a run
# (docs/experiments/009-training-recipe.md). Shorter runs than LEAST_STEPS were not measured: they
# take the angle of LEAST_STEPS.
KERNEL_RATE = 1.1
LEAST_STEPS = 100
COOLDOWN = 0.2  # the part of the images over which schedule=cooldown falls
# Steps between reads of the loss: a NaN is noticed at most this late.
READ_STEPS = 50
# Ordinary calls before one is recorded as a CUDA graph: they choose algorithms and compile kernels,
# neither of which may happen while a graph is recorded.
WARM_UP = 3


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN."""


class StepTooLarge(SettingError, torch.OutOfMemoryError):
    """A step takes more memory than the device has."""


class StepResult(NamedTuple):
    """One step: its number, its loss in bits/dim, its gradient's norm before clipping, its rate."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float


class Inputs(NamedTuple):
    """Arguments of a network in training, as `PixelCNNpp.forward` takes them."""

    target: Tensor
    context: Tensor | None = None
    label: Tensor | None = None


def make_inputs(
    x: Tensor,
    config: TrainConfig,
    label: Tensor | None = None,
    *,
    first_index: int | Tensor,
    repeat: int = 0,
) -> Inputs:
    """Inputs of `config.role` for clean x; noise of image b by (seed, first_index + b, repeat)."""
    if config.role == "plain":
        return Inputs(x, None, label)
    seed, smoothing = config.seed, SMOOTHINGS[config.smoothing](config.scale)
    x_tilde = smoothing.sample(x, seed=seed, first_index=first_index, repeat=repeat)
    if config.role == "noisy":
        return Inputs(x_tilde, None, label)
    if config.clean_noise:
        noise = GaussianSmoothing(config.clean_noise, Stream.CLEAN_NOISE)
        x = noise.sample(x, seed=seed, first_index=first_index, repeat=repeat)
    return Inputs(x, x_tilde, label)


def total_images(config: TrainConfig) -> int:
    """The number of images of a run, in which a budget was already converted."""
    assert config.images is not None
    return config.images


def kernel_rate(config: TrainConfig) -> float:
    """Muon's peak angle in radians: the run's setting, else one that follows from its steps."""
    if config.kernel_rate is not None:
        return config.kernel_rate
    return KERNEL_RATE * max(LEAST_STEPS, total_images(config) / config.batch_size) ** -0.5


def scheduled(peak: float, config: TrainConfig, images_seen: int, steps: int) -> float:
    """A rate in the step after `steps` steps and `images_seen` images."""
    peak *= config.rate_factor
    rate = peak * min(1.0, (images_seen + config.batch_size) / max(1, config.warmup_images))
    if config.schedule == "exponential":
        return rate * config.learning_rate_decay**steps
    done = min(1.0, images_seen / total_images(config))
    if config.schedule == "cooldown":
        return rate * min(1.0, (1 - done) / COOLDOWN)
    return rate * 0.5 * (1 + math.cos(math.pi * done))


def dropout_seed(seed: int, position: Tensor) -> Tensor:
    """Two words of Philox at (0, low word of images seen, high word, DROPOUT): int64 scalar."""
    words = device_words(
        1, 1, seed=seed, first_index=position, stream=Stream.DROPOUT, device=position.device
    )
    return words[0, 0, 0] | words[0, 0, 1] << 32


def check_step(config: TrainConfig, device: torch.device) -> None:
    """Raise SettingError for a batch that the processes cannot share, and for graph="on" without
    CUDA."""
    size = group().size
    if config.batch_size % (unit := size * config.accumulate):
        words = f"must be a multiple of {unit}, for {size} processes in {config.accumulate} parts"
        raise SettingError("batch_size", f"{words} each, got {config.batch_size}")
    if config.graph == "on" and device.type != "cuda":
        words = f"cannot be on: it needs a CUDA device, and this run computes on {device.type}"
        raise SettingError("graph", f"{words}; use auto or off")


def initial_state(model: PixelCNNpp, initial: PixelCNNpp) -> dict[str, Tensor]:
    """The weights of `initial` for `model`; class projections are zero if the classes differ."""
    old, new = initial.config.classes, model.config.classes
    others = (old and old.names) != (new and new.names)
    weights = initial.state_dict()
    return {
        key: torch.zeros_like(value)
        if others and key.endswith("condition_weight")
        else weights[key]
        for key, value in model.state_dict().items()
    }


class ReplayedStep:
    """Runs `step` WARM_UP times on a side stream, then records it as a CUDA graph and replays."""

    def __init__(self, step: Callable[[], object], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.calls = 0
        # One stream for all calls and the recording: torch reuses freed memory per stream.
        self.side = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def __call__(self) -> None:
        """One step, on the current stream."""
        self.calls += 1
        with torch.cuda.device(self.device):
            if self.calls <= WARM_UP:
                current = torch.cuda.current_stream()
                self.side.wait_stream(current)
                with torch.cuda.stream(self.side):
                    self.step()
                current.wait_stream(self.side)
                return
            if self.calls == WARM_UP + 1:
                # Other threads, such as NCCL's, may call CUDA meanwhile.
                with torch.cuda.graph(
                    self.graph, stream=self.side, capture_error_mode="thread_local"
                ):
                    self.step()
            self.graph.replay()


class TrainState:
    """The model, its average and its optimiser, after `images_seen` training images."""

    def __init__(
        self,
        config: TrainConfig,
        train_set: ImageDataset,
        device: torch.device,
        initial: PixelCNNpp | None = None,
    ) -> None:
        self.config = config
        self.train_set = train_set
        self.device = device
        self.images_seen = self.steps = self.steps_read = 0
        self.autocast = autocast(device, config.precision)
        self.group = group().on(device)
        # The part of a batch that this process computes: how many images, and the first of them.
        self.share = config.batch_size // self.group.size
        self.first_image = self.group.rank * self.share
        labels = train_set.labels_for(config.model.classes)
        self.images = ImagesOnDevice(train_set, labels, config.batch_size, config.seed, device)
        # What a step takes from the host. place: images seen, and the step's row in `rows`. rates:
        # those of Adam, of Muon and of the moving average.
        self.place = torch.zeros(2, dtype=torch.int64, device=device)
        self.rates = torch.zeros(3, dtype=torch.float64, device=device)
        # Loss, norm of the gradient and rate of step n in row n % READ_STEPS.
        self.rows = torch.zeros(READ_STEPS, 3, dtype=torch.float64, device=device)
        self._take_step: Callable[[], None] = self._update
        if config.graph != "off" and device.type == "cuda":
            self._take_step = ReplayedStep(self._update, device)

        with torch_seed(config.seed):
            model = PixelCNNpp(config.model)
        self.model = model.to(device, torch.float32).to(memory_format=torch.channels_last)
        if initial is not None:
            self.model.load_state_dict(initial_state(self.model, initial))
        elif config.data_init:
            self.model.initialize(*self.inputs(0))
        self.optimizer = Optimizer(self.model, config, device)
        flat = self.optimizer.flat  # from the first process: machines round differently
        flat.values.copy_(self.group.first(flat.values.cpu))
        # The weights to evaluate and sample with, and their buffer if they are a moving average.
        self.averaged = self.model
        self.average: FlatParameters | None = None
        if config.ema:
            self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
            named = dict(self.averaged.named_parameters())
            self.average = FlatParameters({name: named[name] for name in flat.offsets})

    def inputs(self, first: int) -> Inputs:
        """The whole batch at stream position `first`."""
        self.images.prepare(first)
        position = torch.tensor(first, device=self.device)
        return self._inputs_of(position, 0, self.config.batch_size)

    def step(self) -> None:
        """One update by all processes. It may still run when this returns: `results` waits."""
        self.images.prepare(self.images_seen)
        send(torch.tensor([self.images_seen, self.steps % READ_STEPS]), self.place)
        rates = [
            scheduled(peak, self.config, self.images_seen, self.steps)
            for peak in (self.config.learning_rate, kernel_rate(self.config))
        ]
        rates.append(1 - min(self.config.ema, (1 + self.steps) / (10 + self.steps)))
        send(torch.tensor(rates, dtype=torch.float64), self.rates)
        try:
            self._take_step()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            words = f"not enough memory for a step of {self.share:,} images ({reason}): set"
            raise StepTooLarge((), words, accumulate=2 * self.config.accumulate) from error
        self.steps += 1
        self.images_seen += self.config.batch_size

    def results(self) -> list[StepResult]:
        """The steps since the last call, at most READ_STEPS; all processes call this together.

        Raises NonFiniteLoss if a loss or a gradient norm is not finite. Call it before saving.
        """
        rows = self.rows.to("cpu", copy=True)
        rows[:, 0] = sum(self.group.gather(rows[:, 0]))  # each process has the loss of its share
        steps = range(max(self.steps_read, self.steps - READ_STEPS), self.steps)
        results = [StepResult(step, *rows[step % READ_STEPS].tolist()) for step in steps]
        self.steps_read = self.steps
        for result in results:
            if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
                images = self.images_seen - (self.steps - result.step) * self.config.batch_size
                raise NonFiniteLoss(
                    f"the loss is {result.loss} and its gradient's norm {result.gradient_norm} "
                    f"at step {result.step} ({images:,} images) with seed {self.config.seed}; "
                    "lower learning_rate, or resume from the last checkpoint with another setting"
                )
        return results

    def _inputs_of(self, position: Tensor, first: int, count: int) -> Inputs:
        """`count` images, from number `first` on, of the batch that begins at `position`."""
        images, label = self.images.part(first, count)
        x, position = to_float(images), position + first
        if self.config.flip:
            coins = flips(position, count, seed=self.config.seed, device=self.device)
            x = torch.where(coins.view(-1, 1, 1, 1), x.flip(3), x)
        if label is not None and (dropout := self.config.label_dropout):
            label = drop_labels(label, dropout, position, self.config.seed)
        return make_inputs(x, self.config, label, first_index=position)

    def _update(self) -> None:
        """One update, from tensors on the device to tensors on the device."""
        (position, row), (rate, angle, weight) = self.place, self.rates
        self.model.train()
        loss = self._backward(position)
        flat = self.optimizer.flat
        gradient = flat.gather_gradients()
        self.group.add_up(gradient)
        norm = torch.linalg.vector_norm(gradient)
        if self.config.clip_norm is not None:
            gradient *= (self.config.clip_norm / (norm + 1e-6)).clamp(max=1)
        self.optimizer.step(rate, angle.float())
        if self.average:
            self.average.values.lerp_(flat.values, weight.float())
        self.rows.index_copy_(0, row.view(1), torch.stack([loss, norm.double(), rate])[None])

    def _backward(self, position: Tensor) -> Tensor:
        """Compute gradients of this share of the batch; returns its part of the loss, float64."""
        config = self.config
        seed = dropout_seed(config.seed, position) if config.model.dropout else None
        inputs = self._inputs_of(position, self.first_image, self.share)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        numbers = config.batch_size * inputs.target[0].numel()  # of the batch of all processes
        size = self.share // config.accumulate
        for first in range(0, self.share, size):
            part = slice(first, first + size)
            with self.autocast:
                sliced = (None if x is None else x[part] for x in inputs)
                params = self.model(*sliced, seed=seed, first_image=self.first_image + first)
                log_p = self.model.log_prob_given(inputs.target[part], params)
            part_loss = -log_p.sum() / (math.log(2) * numbers)
            part_loss.backward()
            loss += part_loss.detach()
        return loss

    def check_finite(self) -> None:
        """Raise NonFiniteLoss if a weight or an average is infinite or NaN."""
        for name, tensor in self.tensors().items():
            if not tensor.isfinite().all():
                raise NonFiniteLoss(
                    f"{name} is not finite after step {self.steps} ({self.images_seen:,} images) "
                    f"with seed {self.config.seed}; what was saved before is kept"
                )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, by name."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"ema.{k}": v for k, v in self.averaged.state_dict().items()}
        return tensors | self.optimizer.tensors()

    def restore(
        self, tensors: Mapping[str, Tensor], images_seen: int, steps: int, source: str
    ) -> None:
        """Continue from `tensors` of a state. ValueError, naming `source`, if they do not fit."""
        check_tensors(self.tensors(), tensors, source, "the state of another network or optimiser")
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.optimizer.state["step"].fill_(steps)
        self.images_seen = images_seen
        self.steps = self.steps_read = steps
