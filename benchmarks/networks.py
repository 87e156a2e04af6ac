"""The networks of the benchmarks, and the check of images that a sampler draws from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Limit, matmul
from dsmooth import GaussianSmoothing, ModelConfig, PixelCNNpp, SmoothedPair, preset
from dsmooth.data import ImageDataset
from dsmooth.functional import logistic_mixture_sample, use_impl
from dsmooth.machine import torch_threads
from dsmooth.philox import Stream, image_words, to_uniform
from dsmooth.sampling.operations import NONE, Phase
from dsmooth.sampling.program import Program
from dsmooth.training.step import TrainState


@dataclass(frozen=True)
class Network:
    """A PixelCNN++ and the images it is for."""

    channels: int = 1
    n_filters: int = 40
    n_resnet: int = 5
    size: int = 28

    def build(self, conditioning: Any = "none", n_mix: int = 10) -> PixelCNNpp:
        """With random weights whose samples stay in the range of images, in evaluation mode."""
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
    """A function that does the work of plain sampling for one pixel of every image.

    A context is encoded here, once for all pixels.
    """
    context = None if model.config.conditioning == "none" else torch.zeros(shape)
    x = torch.zeros(shape)
    with torch.no_grad(), use_impl("reference"):
        # Models with classes are told none: the work is the same.
        n_classes = model.config.condition_size
        label = torch.zeros(shape[0], n_classes) if n_classes else None
        encoded = model.encode_context(x, context, label)

    def run() -> None:
        with torch.no_grad(), use_impl("reference"):
            model.decode(x, encoded)

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
    """A function that makes one update by Adam, with clipping, and returns its loss."""
    model.to(x.device, memory_format=torch.channels_last)
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
    """A run of a preset at its beginning, on random images of its data's size.

    settings: fields of the preset; `size`: of other images.
    """
    size = settings.pop("size", None)
    config = preset(name, role, **{"images": 10**6, "data_init": False, **settings})
    size = size or (28 if config.data == "mnist" else 32)
    shape = (2 * config.batch_size, config.model.image_channels, size, size)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()
    data = ImageDataset(images, torch.arange(len(images)), "random", "train", "for a benchmark")
    return TrainState(config, data, device)


def never_fall_back() -> None:
    """Have torch.compile fail where it would run eagerly after many shapes."""
    dynamo = import_module("torch._dynamo.config")
    dynamo.recompile_limit = 64
    dynamo.fail_on_recompile_limit_hit = True


def flops_of_forward(model: PixelCNNpp, shape: tuple[int, ...]) -> int:
    """Also those of cached sampling: every activation is computed once."""
    with FlopCounterMode(display=False) as counter:
        plain_pass(model, (1, *shape[1:]))()
    return shape[0] * int(counter.get_total_flops())


def limits_of(
    models: Sequence[PixelCNNpp], dtype: torch.dtype, shape: tuple[int, ...]
) -> dict[str, Callable[[], Limit]]:
    """Limits of sampling: torch.mm at large, and of the same products."""
    images = min(shape[0], 8)  # of a slice
    return {
        "torch.mm": lambda: matmul(dtype),
        "torch.mm of the same products": lambda: same_products(models, shape[3], dtype, images),
    }


def same_products(
    models: Sequence[PixelCNNpp], width: int, dtype: torch.dtype, images: int
) -> Limit:
    """torch.mm of the products that samplers make for four rows of a slice of images, by one
    thread; as many as torch have are taken to be as fast."""
    products = []
    for op in (op for model in models for op in Program(model).ops):
        at_once = op.phase in (Phase.ENCODER, Phase.VERTICAL)
        columns = sum(_runs_at(op.resolution, op.column_parity, column) for column in range(width))
        rows = sum(_runs_at(op.resolution, op.row_parity, row) for row in range(4))
        for term in op.terms:
            n, *inner = term.weight.shape
            whole_row, k = at_once or term.row_part, math.prod(inner)
            operands = torch.randn(images * (columns if whole_row else 1), k), torch.randn(k, n)
            products += [[one.to(dtype) for one in operands]] * rows * (1 if whole_row else columns)

    def run() -> None:
        with torch_threads(1):
            for a, b in products:
                torch.mm(a, b)

    flops = sum(2 * a.numel() * b.shape[1] for a, b in products)
    return Limit(run, torch.get_num_threads() * flops, "flops")


def _runs_at(resolution: int, parity: int, at: int) -> bool:
    if at % 2**resolution:
        return False
    return parity == NONE or (at >> resolution) % 2 == parity


@torch.no_grad()
def check_samples(model: PixelCNNpp, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """The images are those of the network: redraw their pixels from a forward on themselves."""
    n = min(4, x.shape[0])
    height, width = x.shape[2:]
    words = image_words(n, height * width, seed=0, stream=Stream.SAMPLE)
    uniforms = to_uniform(words).float().view(n, height, width, 4).permute(0, 3, 1, 2)
    mixture = model.config.mixture
    again = logistic_mixture_sample(model(x[:n]), uniforms, x.shape[1], **mixture)
    # Pixels differ where a component was chosen within rounding of a boundary.
    tolerance, flips = (1e-3, 1e-3) if dtype == torch.float32 else (5e-2, 3e-2)
    assert ((again - x[:n]).abs() > tolerance).float().mean() < flips
