"""A training run between two steps: the model, its average, its optimiser, and their scores.

A step is a function of (config, images seen): the order of images, the noise and the dropout all
derive from these two. So a resumed run is the run that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import Precision, TrainConfig
from ..data import ImageDataset, indices_at
from ..files import load_state
from ..nn import PixelCNNpp
from ..philox import Stream, image_words
from ..sampling import sample_images
from ..smoothing import GaussianSmoothing, make_smoothing
from .ema import EMA

# Evaluation noise never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN."""


def loss_name(config: TrainConfig) -> str:
    """The quantity that the loss of a run measures, in bits/dim, with its likelihood."""
    what = {"noisy": "x~", "denoiser": "x given x~", "plain": "x"}[config.role]
    return f"bits/dim of {what} ({config.model.likelihood})"


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
            compile_gated_resnets(self.model)

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
        if config.schedule == "cooldown":
            return config.learning_rate * warm * min(1.0, (1 - done) / config.cooldown)
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))

    def step(self) -> tuple[float, float]:
        """One update. Returns (loss in bits/dim, norm of the gradient before clipping)."""
        config = self.config
        # Dropout is then a function of the seed and of the images seen.
        words = image_words(
            1, 1, seed=config.seed, first_index=self.images_seen, stream=Stream.DROPOUT
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
        if self.ema:
            tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters()]
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{key}.{names[i]}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return tensors

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        *,
        images_seen: int,
        steps: int,
        best_bits: float,
        source: str,
    ) -> None:
        """Continue from what `tensors` gave. Raises ValueError, naming `source`, for others."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        load_state(self.model, parts["model"], source)
        self.images_seen, self.steps, self.best_bits = images_seen, steps, best_bits
        if self.ema:
            load_state(self.ema.model, parts["ema"], source)
            self.ema.n_updates = self.steps
        if not steps:
            return  # the optimiser has no moments before its first step
        moments = ("exp_avg", "exp_avg_sq")
        shapes = {f"{m}.{n}": p.shape for n, p in self.model.named_parameters() for m in moments}
        if {name: tensor.shape for name, tensor in parts["adam"].items()} != shapes:
            raise ValueError(f"{source} holds the state of another optimiser")
        description = self.optimizer.state_dict()
        for i, (name, parameter) in enumerate(self.model.named_parameters()):
            # The fused optimiser walks memory: moments must lie in the order of their parameter.
            description["state"][i] = {
                key: torch.empty_like(parameter).copy_(parts["adam"][f"{key}.{name}"])
                for key in moments
            } | {"step": torch.tensor(float(self.steps))}
        self.optimizer.load_state_dict(description)


def make_inputs(
    x: Tensor, config: TrainConfig, *, first_index: int, repeat: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The (target, context) that a role is trained on, for clean images x (B, C, H, W).

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
        x = GaussianSmoothing(config.clean_noise, Stream.CLEAN_NOISE).sample(x, **where)
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


def compile_gated_resnets(model: PixelCNNpp) -> None:
    """Compile each gated resnet by itself: equal shapes share one compilation of seconds."""
    from ..nn.layers import GatedResnet

    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.compile()
