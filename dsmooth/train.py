"""Training of one model: p(x~), p(x | x~) or p(x).

A step is a function of (config, images seen): the order of images, the noise and the dropout are
all derived from these two, so a resumed run is the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .config import Precision, TrainConfig, flatten
from .data import ImageDataset, indices_at, load_dataset
from .ema import EMA
from .files import load_state, read_tensors, save_weights, write_tensors
from .nn import PixelCNNpp
from .philox import Stage, image_words
from .runlog import RunLog
from .runs import RunFolder
from .sampling import sample_images
from .smoothing import GaussianSmoothing, make_smoothing

# Evaluation noise never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN."""


@dataclass
class TrainResult:
    """How a call of `train` ended. `interrupted` is the signal's number, or None if it finished."""

    images_seen: int
    bits_per_dim: float | None
    interrupted: int | None = None


def loss_name(config: TrainConfig) -> str:
    """What the loss of a run measures, in bits/dim, with its likelihood."""
    what = {"noisy": "x~", "denoiser": "x given x~", "plain": "x"}[config.role]
    return f"bits/dim of {what} ({config.model.likelihood})"


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    tensorboard: bool = False,
) -> TrainResult:
    """Train one model, or go on with `resume`, and write everything into `folder`.

    The folder gets the files of a `RunFolder`. SIGINT, SIGTERM and SIGHUP save a checkpoint and
    return early. threads: CPU
    threads, None for torch's setting; sums are rounded in another order with another number.
    tensorboard: also write event files, which needs the extra of that name.

    Raises ValueError or FileNotFoundError for data, settings or a folder that do not fit, and
    NonFiniteLoss, naming step and seed.
    """
    run = RunFolder(Path(folder))
    if threads:
        torch.set_num_threads(threads)
    if resume:
        config = merge_with_run(config, run)
    else:
        check_new_run(run)
    train_set, test_set = load_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(config, precision=resolve_precision(config, device))
    state = TrainState(config, train_set, device)
    if resume:
        state.load(run.checkpoint)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(catch_signals())
        if config.images is None:
            config = fix_images(state, test_set)
            state.config = config
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_config(config, test_set.image_size)
        log = stack.enter_context(
            RunLog(run, config, loss_name(config), state.images_seen, tensorboard)
        )
        return _loop(state, test_set, run, log, stop)


def _loop(
    state: TrainState,
    test_set: ImageDataset,
    run: RunFolder,
    log: RunLog,
    stop: Callable[[], int | None],
) -> TrainResult:
    total = state.total_images
    marks = [total * (i + 1) // state.config.evaluations for i in range(state.config.evaluations)]
    bits = None
    saved = time.monotonic()
    while state.images_seen < total:
        before = state.images_seen
        loss, gradient_norm = state.step()
        log.step(state.images_seen, loss, gradient_norm, state.learning_rate())

        if any(before < mark <= state.images_seen for mark in marks):
            bits = evaluate(state, test_set)
            save_weights(state.averaged, run.weights)
            if bits < state.best_bits:
                state.best_bits = bits
                save_weights(state.averaged, run.best_weights)
            log.evaluation(state.images_seen, bits)
            log.grid(state.images_seen, sample_grid(state, test_set))

        interrupted = stop()
        due = time.monotonic() - saved > 60 * state.config.checkpoint_minutes
        if interrupted or due or state.images_seen >= total:
            state.save(run.checkpoint)
            saved = time.monotonic()
        if interrupted:
            log.interrupted(state.images_seen)
            return TrainResult(state.images_seen, bits, interrupted)
    log.finished(state.images_seen)
    return TrainResult(state.images_seen, bits)


class TrainState:
    """The model, its average and its optimiser, as after `images_seen` training images."""

    def __init__(self, config: TrainConfig, train_set: ImageDataset, device: torch.device) -> None:
        self.config = config
        self.train_set = train_set
        self.device = device
        self.images_seen = 0
        self.steps = 0
        self.best_bits = math.inf
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        )

        torch.manual_seed(config.seed)
        self.model = PixelCNNpp(config.model).to(device).to(memory_format=torch.channels_last)
        if config.data_init:
            self.model.initialize(*self.inputs(0))
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
        )
        if config.compile:
            compile_blocks(self.model)

    @property
    def averaged(self) -> PixelCNNpp:
        """The weights to evaluate and sample with."""
        return self.ema.model if self.ema else self.model

    @property
    def total_images(self) -> int:
        """Where the run ends."""
        if self.config.images is None:
            raise ValueError("images is not fixed yet")
        return self.config.images

    def inputs(self, first: int) -> tuple[Tensor, Tensor | None]:
        """(target, context) of the batch at stream position `first`."""
        config = self.config
        indices = indices_at(len(self.train_set), first, config.batch_size, config.seed)
        x = self.train_set.batch(indices).to(self.device)
        return make_inputs(x, config, first_index=first)

    def learning_rate(self) -> float:
        """The learning rate of the step at `images_seen`."""
        config = self.config
        warm = min(1.0, (self.images_seen + config.batch_size) / max(1, config.warmup_images))
        if config.schedule == "exponential":
            return config.learning_rate * warm * config.learning_rate_decay**self.steps
        done = min(1.0, self.images_seen / self.total_images)
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))

    def step(self) -> tuple[float, float]:
        """One update. Returns (loss in bits/dim, norm of the gradient before clipping)."""
        config = self.config
        # Dropout is then a function of the seed and of the images seen.
        words = image_words(
            1, 1, seed=config.seed, first_index=self.images_seen, stage=Stage.DROPOUT
        )
        torch.manual_seed(int(words[0, 0, 0]))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()

        x, context = self.inputs(self.images_seen)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for part in range(config.accumulate):
            rows = slice(part, None, config.accumulate)
            with self.autocast:
                log_p = self.model.log_prob(x[rows], None if context is None else context[rows])
            part_loss = -log_p.sum() / (math.log(2) * x.numel())
            part_loss.backward()
            loss += float(part_loss.detach())
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm or math.inf)
        )
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteLoss(
                f"the loss is {loss} and its gradient's norm {norm} at step {self.steps} "
                f"({self.images_seen:,} images) with seed {config.seed}; "
                "lower learning_rate, or resume from the last checkpoint with another setting"
            )
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        self.steps += 1
        self.images_seen += config.batch_size
        return loss, norm

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs as one safetensors file."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema:
            tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters()]
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{key}.{names[i]}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        metadata = {
            "images_seen": str(self.images_seen),
            "steps": str(self.steps),
            "best_bits": repr(self.best_bits),
        }
        write_tensors(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        tensors, metadata = read_tensors(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        if not {"images_seen", "steps", "best_bits"} <= metadata.keys():
            raise ValueError(f"{path} is not a training checkpoint")
        load_state(self.model, parts["model"], str(path))
        self.images_seen, self.steps = int(metadata["images_seen"]), int(metadata["steps"])
        self.best_bits = float(metadata["best_bits"])
        if self.ema:
            load_state(self.ema.model, parts["ema"], str(path))
            self.ema.n_updates = self.steps
        description = self.optimizer.state_dict()
        for i, (name, parameter) in enumerate(self.model.named_parameters()):
            # The fused optimiser walks memory: moments must lie in the order of their parameter.
            description["state"][i] = {
                key: torch.empty_like(parameter).copy_(parts["adam"][f"{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            } | {"step": torch.tensor(float(self.steps))}
        self.optimizer.load_state_dict(description)


def make_inputs(
    x: Tensor, config: TrainConfig, *, first_index: int, repeat: int = 0
) -> tuple[Tensor, Tensor | None]:
    """What a role is trained on: (target, context) for clean images x (B, C, H, W).

    The noise of row b is a function of (config.seed, first_index + b, repeat).
    """
    if config.role == "plain":
        return x, None
    smoothing = make_smoothing(config.smoothing, config.scale)
    where = {"seed": config.seed, "first_index": first_index, "repeat": repeat}
    x_tilde = smoothing.sample(x, **where)
    if config.role == "noisy":
        return x_tilde, None
    if config.clean_noise:
        x = GaussianSmoothing(config.clean_noise, Stage.CLEAN_NOISE).sample(x, **where)
    return x, x_tilde


@torch.no_grad()
def evaluate(state: TrainState, test_set: ImageDataset) -> float:
    """Bits/dim of the averaged weights on the first held-out images, with fixed noise."""
    config = state.config
    n = min(config.evaluation_images, len(test_set))
    model = state.averaged.eval()
    nats = 0.0
    for first in range(0, n, 100):
        x = test_set.batch(torch.arange(first, min(first + 100, n))).to(state.device)
        x, context = make_inputs(x, config, first_index=first, repeat=EVALUATION_REPEAT)
        with state.autocast:
            nats -= float(model.log_prob(x, context).double().sum())
    return nats / (math.log(2) * n * test_set.images[0].numel())


def sample_grid(state: TrainState, test_set: ImageDataset) -> Tensor:
    """A few samples of the averaged weights; a denoiser gets held-out noisy images."""
    config = state.config
    height, width = test_set.image_size
    x = test_set.batch(torch.arange(min(GRID_IMAGES, len(test_set)))).to(state.device)
    _, context = make_inputs(x, config, first_index=0, repeat=EVALUATION_REPEAT)
    return sample_images(
        state.averaged, x.shape[0], height=height, width=width, seed=config.seed, context=context
    )


def resolve_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Replace "auto" by bfloat16 where the machine multiplies it fast, else by float32."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def compile_blocks(model: PixelCNNpp) -> None:
    """Compile each gated resnet by itself: equal shapes share one compilation of seconds."""
    from .nn.layers import GatedResnet

    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.compile()


def fix_images(state: TrainState, test_set: ImageDataset) -> TrainConfig:
    """Turn a budget into a number of images by a few seconds of training on a scratch copy.

    Evaluations that would take more than a fifth of the budget become fewer, one at the least.
    """
    config = state.config
    if config.budget is None:
        raise ValueError("give --images or --budget: how long is the run to be?")
    started = time.monotonic()
    scratch = TrainState(replace(config, images=10**9), state.train_set, state.device)
    scratch.step()
    times: list[float] = []
    while len(times) < 3 or time.monotonic() - started < min(5.0, 3 * config.budget):
        before = time.monotonic()
        scratch.step()
        times.append(time.monotonic() - before)
    before = time.monotonic()
    evaluate(scratch, test_set)
    sample_grid(scratch, test_set)
    cost = time.monotonic() - before
    evaluations = max(1, min(config.evaluations, int(60 * config.budget / (5 * cost))))
    left = 60 * config.budget - evaluations * cost - (time.monotonic() - started)
    steps = max(1, int(left / sorted(times)[len(times) // 2]))
    return replace(config, images=steps * config.batch_size, evaluations=evaluations)


def check_new_run(run: RunFolder) -> None:
    """Raise ValueError if the folder already holds a run."""
    if run.config.exists():
        raise ValueError(
            f"{run.path} already holds a run; go on with it by --resume, or choose another --out"
        )


def merge_with_run(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """The config of the run that is there, after checking that `config` does not contradict it."""
    stored, _ = run.read_config()
    if not run.checkpoint.exists():
        raise FileNotFoundError(f"{run.path} holds no checkpoint to resume from")
    mine, theirs = flatten(asdict(config)), flatten(asdict(stored))
    if mine["images"] is None:  # a budget has become a number of images
        for name in ("images", "budget", "evaluations"):
            mine[name] = theirs[name]
    if mine["precision"] == "auto":
        mine["precision"] = theirs["precision"]
    different = [name for name in mine if mine[name] != theirs[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{run.path} holds another run: its {name} is {theirs[name]}, not {mine[name]}"
        )
    return stored


def load_data(config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    def load(split: str) -> ImageDataset:
        return load_dataset(
            config.data,
            split,
            config.data_dir,
            download=config.download,
            image_size=config.image_size,
        )

    train_set, test_set = load("train"), load("test")
    if train_set.image_channels != config.model.image_channels:
        raise ValueError(
            f"{config.data} has {train_set.image_channels} channels, but the model's "
            f"image_channels is {config.model.image_channels}"
        )
    return train_set, test_set


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGINT, SIGTERM and SIGHUP only set what the yielded function returns."""
    received: list[int] = []

    def handler(number: int, frame: object) -> None:
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread: nobody sends signals here
        yield lambda: None
        return
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
