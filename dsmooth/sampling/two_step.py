"""Two-step sampling: x~ from the noisy model, then x from the denoiser or as the posterior mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..config import Classes
from ..data.pictures import is_diverged
from ..fields import SettingError
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS
from ..nn.gradients import input_gradient
from ..nn.weights import in_evaluation
from ..progress import portion
from ..smoothing import GaussianSmoothing, Smoothing
from ..work import runs
from .cached import draw_network
from .request import KnownPixels, Request, check_guidance


class Pair(Protocol):
    """The parts of a `SmoothedPair` that draw."""

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]

    @property
    def classes(self) -> Classes | None: ...

    @property
    def device(self) -> torch.device: ...

    def check_scale(self, name: str, x: Tensor) -> None: ...


@dataclass(frozen=True)
class Alone:
    """The parts of a noisy model that draw its x~, and the mean of x given x~."""

    noisy: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]


Model = Pair | PixelCNNpp

# An image that `disagrees` with its x~ is drawn again up to ATTEMPTS times. If x~ - x is noise of
# the smoothing, a row disagrees with probability CHANCE.
ATTEMPTS, CHANCE = 16, 1e-12


@torch.no_grad()
def draw(model: Model, request: Request) -> Tensor:
    """Draw the images (count, C, H, W) of a `fitted` request from a pair, or from one network.

    A pair takes x~ from the request, or draws it from p(x~), and then draws x given x~. An image is
    all NaN if its x~ diverged.
    """
    if isinstance(model, PixelCNNpp):
        assert model.image_size is not None  # checked earlier
        if request.method != "single-step":
            return draw_network(model, request, model.image_size)
        assert model.smoothing is not None  # checked in `fitted`
        return draw_of(Alone(model, model.smoothing, model.image_size), request)
    return draw_of(model, request)


def draw_of(model: Pair | Alone, request: Request) -> Tensor:
    """`draw` from a pair, or from a noisy model whose images are denoised by the mean."""
    x_tilde = request.x_tilde
    steps = 1 if request.method == "noisy" or x_tilde is not None else 2
    if x_tilde is None:
        with portion(1 / steps):
            x_tilde = draw_noisy(model, request)
    if request.method == "noisy":
        return x_tilde
    diverged = is_diverged(x_tilde).view(-1, 1, 1, 1)
    seen = torch.where(diverged, 0.0, x_tilde)
    with portion(1 / steps):
        if isinstance(model, Alone) or request.method == "single-step":
            x = denoise_by_mean(model, request, seen)
        else:
            x = draw_clean(model, request, seen)
    return torch.where(diverged, math.nan, x)


def fitted(model: Model, request: Request) -> Request:
    """Check a request for a model, and give each image its label.

    Raises ValueError for a method, label or guidance that the model does not have, and for known
    pixels outside [-1, 1]. A model of bytes needs known pixels that are bytes.
    """
    if isinstance(model, PixelCNNpp):
        if model.config.conditioning != "none":
            raise ValueError("a denoiser draws given noisy images: name its noisy model too")
        # A noisy model draws x~, as a pair does with the method "noisy", or its mean given x~.
        if request.method != "two-step" and model.role != "noisy":
            words = "is for a pair, not for a single model: leave it out"
            raise SettingError("method", words)
        if request.method == "single-step" and model.smoothing is None:
            raise SettingError("method", "needs the noise, which these weights do not say")
        networks = [model]
    else:
        networks = [model.noisy, model.denoiser][: 1 + (request.method == "two-step")]
        if request.known is not None:
            model.check_scale("known", request.known.values)
    if request.guidance:
        for config in [n.config for n in networks if n.config.classes] or [networks[0].config]:
            check_guidance(config)
    if request.label is None and model.classes is not None:
        # If known pixels or x~ are given, the class of the image is unknown. A model trained with
        # label dropout then draws without a class; for others `labels` raises and asks for one.
        given = request.known is not None or request.x_tilde is not None
        label = "prior" if not given else NO_CLASS if model.classes.dropout else None
        request = replace(request, label=label)
    return replace(request, label=request.labels(model.classes, model.device))


def draw_noisy(pair: Pair | Alone, request: Request) -> Tensor:
    """x~ ~ p(x~); its known pixels are those of the request plus noise of the smoothing."""
    if request.known is not None:
        seed, first_index = request.seed, request.first_index
        noised = pair.smoothing.sample(request.known.images, seed=seed, first_index=first_index)
        request = replace(request, known=KnownPixels(noised, request.known.mask))
    return draw_network(pair.noisy, of_network(request, pair.noisy), pair.image_size)


def draw_clean(pair: Pair, request: Request, x_tilde: Tensor) -> Tensor:
    """x ~ p(x | x~), drawn again where it `disagrees` with x~ (docs/experiments/028).

    Every attempt has a seed of its own. Where all attempts disagree, the first is kept: so a barely
    trained denoiser draws as it would with one attempt.
    """
    step = of_network(request, pair.denoiser)
    x = draw_network(pair.denoiser, step, pair.image_size, x_tilde)
    wrong = disagrees(pair.smoothing, x, x_tilde)
    for attempt in range(1, ATTEMPTS + 1):
        for part in runs(wrong.nonzero().flatten().tolist(), len(x)):
            images = slice(part.start, part.stop)
            again = replace(step.part(part), seed=step.seed ^ attempt << 59)
            seen = x_tilde[images]
            drawn = draw_network(pair.denoiser, again, pair.image_size, seen)
            wrong[images] = disagrees(pair.smoothing, drawn, seen)
            x[images] = torch.where(wrong[images].view(-1, 1, 1, 1), x[images], drawn)
    return x


def disagrees(smoothing: Smoothing, x: Tensor, x_tilde: Tensor) -> Tensor:
    """Whether any row of pixels of x~ - x is too large for gaussian noise: (N,) bool.

    A row is too large if the probability that noise has its sum of squares or more is below CHANCE.
    False for other smoothing.
    """
    if type(smoothing) is not GaussianSmoothing:  # a subclass may have other noise
        return x.new_zeros(len(x), dtype=torch.bool)
    noise = (x_tilde.double() - x.double()) / smoothing.scale
    degrees = noise.new_tensor(x.shape[1] * x.shape[3])
    chance = torch.special.gammaincc(degrees / 2, noise.square().sum((1, 3)) / 2)
    return (chance < CHANCE).any(1)


def denoise_by_mean(pair: Pair | Alone, request: Request, x_tilde: Tensor) -> Tensor:
    """E[x | x~] = x~ + scale**2 * grad log p(x~) (Tweedie's formula); known pixels are kept."""
    noisy, smoothing = pair.noisy, pair.smoothing
    if type(smoothing) is not GaussianSmoothing:  # a subclass may have other noise
        kind = type(smoothing).__name__
        raise ValueError(f"single-step denoising needs gaussian smoothing, got {kind}")
    labels = of_network(request, noisy).passes(noisy.config, noisy.head.bias)
    x_tilde = x_tilde.to(noisy.dtype)
    gradient, *without_class = (
        input_gradient(in_evaluation(noisy), x_tilde, label) for label in labels
    )
    for other in without_class:
        gradient = torch.lerp(other, gradient, 1 + request.guidance)
    x = x_tilde + smoothing.scale**2 * gradient
    return x if request.known is None else request.known.keep(x)


def of_network(request: Request, network: PixelCNNpp) -> Request:
    """The request for one network of a pair: no label or guidance if the network has no classes."""
    return request if network.config.classes else replace(request, label=None, guidance=0.0)
