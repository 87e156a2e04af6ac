"""The networks of the benchmarks, and the check of samples that were drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsmooth import GaussianSmoothing, ModelConfig, PixelCNNpp, SmoothedPair, preset
from dsmooth.data import ImageDataset
from dsmooth.functional import logistic_mixture_sample, use_impl
from dsmooth.philox import Stream, image_words, to_uniform
from dsmooth.training.step import TrainState


@dataclass(frozen=True)
class Network:
    """A PixelCNN++ and the images it is for."""

    channels: int = 1
    n_filters: int = 40
    n_resnet: int = 5
    size: int = 28

    def build(self, conditioning: Any = "none", n_mix: int = 10) -> PixelCNNpp:
        """In evaluation mode, with random weights whose samples stay in the range of images."""
        torch.manual_seed(0)
        config = ModelConfig(
            image_channels=self.channels,
            n_filters=self.n_filters,
            n_resnet=self.n_resnet,
            n_mix=n_mix,
            conditioning=conditioning,
        )
        model = PixelCNNpp(config).eval()
        with torch.no_grad():
            model.head.weight_g.mul_(0.1)
            components = model.head.bias[n_mix:]
            components.view(self.channels, -1, n_mix)[:, 1] = -3
        return model

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.channels, self.size, self.size


SMALL = Network(n_filters=8, n_resnet=1, size=8)
MNIST = Network()
CIFAR = Network(channels=3, n_filters=160, size=32)


def make_pair(network: Network, conditioning: Any) -> SmoothedPair:
    """A noisy model and a denoiser that are such networks."""
    models = network.build(), network.build(conditioning)
    size = (network.size, network.size)
    return SmoothedPair(*models, GaussianSmoothing(0.5), size).eval()


def plain_pass(model: PixelCNNpp, shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a function that does the work of plain sampling for one pixel of every image.

    The context is encoded here, once for all pixels.
    """
    context = None if model.config.conditioning == "none" else torch.zeros(shape)
    x = torch.zeros(shape)
    # No class: the work is the same for every label.
    label = torch.full(shape[:1], -1) if model.config.classes else None
    encoded: AbstractContextManager[object] = nullcontext()
    if model.encoder is not None:
        with torch.no_grad(), use_impl("reference"):
            streams = model.encoder(context)
        encoded = patch.object(model.encoder, "forward", return_value=streams)

    def run() -> None:
        with torch.no_grad(), use_impl("reference"), encoded:
            model(x, context, label)

    return run


def make_step(
    model: PixelCNNpp,
    x: Tensor,
    impl: Any,
    dtype: torch.dtype,
    context: Tensor | None = None,
    *,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Return a function that makes one update by Adam, with clipping, and returns its loss."""
    model.to(x.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True, capturable=x.is_cuda)
    log_prob = model.log_prob
    if compiled:
        never_fall_back()
        log_prob = torch.compile(log_prob, dynamic=False, fullgraph=True)
    half = dtype == torch.bfloat16

    def step() -> Tensor:
        with use_impl(impl), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            loss = -log_prob(x, context).sum() / x.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def make_state(name: str, role: Any, device: torch.device, **settings: Any) -> TrainState:
    """The initial state of a preset's run on random images.

    settings: fields of the preset, and `size`: side of the images instead of the data's.
    """
    size = settings.pop("size", None)
    config = preset(name, role, **{"images": 10**6, "data_init": False, **settings})
    size = size or (28 if config.data == "mnist" else 32)
    shape = (2 * config.batch_size, config.model.image_channels, size, size)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()
    data = ImageDataset(images, torch.arange(len(images)), "random", "train", "for a benchmark")
    return TrainState(config, data, device)


def never_fall_back() -> None:
    """Make torch.compile fail where it would fall back to eager after many shapes."""
    dynamo: Any = import_module("torch._dynamo.config")
    dynamo.recompile_limit = 64
    dynamo.fail_on_recompile_limit_hit = True


def flops_of_forward(model: PixelCNNpp, shape: tuple[int, ...]) -> int:
    """FLOP of a forward pass, and of cached sampling, which computes each activation once."""
    with FlopCounterMode(display=False) as counter:
        plain_pass(model, (1, *shape[1:]))()
    return shape[0] * int(counter.get_total_flops())


@torch.no_grad()
def check_samples(model: PixelCNNpp, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Check the images against the network: redraw their pixels from a forward pass on them."""
    n = min(4, x.shape[0])
    height, width = x.shape[2:]
    words = image_words(n, height * width, seed=0, stream=Stream.SAMPLE)
    uniforms = to_uniform(words).float().view(n, height, width, 4).permute(0, 3, 1, 2)
    mixture = model.config.mixture
    again = logistic_mixture_sample(model(x[:n]), uniforms, x.shape[1], **mixture)
    # Pixels differ where a component was chosen within rounding of a boundary.
    tolerance, flips = (1e-3, 1e-3) if dtype == torch.float32 else (5e-2, 3e-2)
    assert ((again - x[:n]).abs() > tolerance).float().mean() < flips
