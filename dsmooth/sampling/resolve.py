"""From what a caller asks for to a `Draw`: all checks, defaults and choices of drawing."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from itertools import accumulate
from numbers import Real
from operator import index
from types import EllipsisType
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from .._extension import warn_once
from ..config import Classes, Method, ModelConfig, Precision
from ..cuda import sampler_obstacle
from ..fields import SettingError, check_choices, check_numbers, check_tensor
from ..machine import choose_device, has_fast_bfloat16
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS, ClassLabel, check_context, labels_of
from ..nn.images import check_images, check_scale, check_size, snap_half_precision
from ..nn.weights import changed_layer
from ..philox import Stream, image_words, seed_words, whole_index
from ..progress import LOG
from ..smoothing import GaussianSmoothing, Smoothing
from .cached import PackedNetwork, packed_sampler
from .draw import Draw, Drawer, KnownPixels
from .sequential import ForwardPasses
from .two_step import PosteriorMean

PER_IMAGE = (np.ndarray, Tensor, list, tuple)  # types of labels of several images


class Pair(Protocol):
    """The parts of a `SmoothedPair` that draw."""

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]


Network = PixelCNNpp | PackedNetwork | ForwardPasses


def resolve(
    model: Pair | Network,
    count: int | None = None,
    *,
    size: tuple[int, int] | None = None,
    method: Method = "two-step",
    precision: Precision = "auto",
    x: Tensor | None = None,
    draws: int = 1,
    x_tilde: Tensor | None = None,
    in_memory: bool = True,
    seed: int | EllipsisType | None = ...,
    generator: torch.Generator | None = None,
    first_index: int = 0,
    temperature: float = 1.0,
    label: ClassLabel | None = None,
    guidance: float = 0.0,
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Draw:
    """The draw of `count` images from a pair or a network.

    count: None for as many as x or x~. size: (H, W), by default the model's own; with it no class
    is filled in. x: known pixels in any dtype, to complete `draws` times each, one after the other.
    x_tilde: images for a pair to denoise, or the context of a network. in_memory: whether all
    images must fit there. Others: see `SmoothedPair.sample` and `Choices`.
    Raises ValueError or TypeError for all that is out of range or does not fit the model.
    """
    check_choices(method=(method, get_args(Method)), precision=(precision, get_args(Precision)))
    networks, smoothing = parts_of(model, method, size is None)
    configs = [network.config for network in networks]
    is_pair, device = len(networks) == 2, networks[0].device
    classes = configs[0].classes or configs[-1].classes
    own: Any = getattr(model, "image_size", ())
    sides = check_size(size, "height", "width") if size else check_size(own)
    shape = configs[0].image_channels, *sides
    given, name = (x_tilde, "x_tilde") if x is None else (x, "x")
    if given is not None and (is_pair or x is not None):
        check_images(name, given, ("B", *shape), device)
        count = len(given)
    check_numbers(count=(count,), draws=(draws,))
    total = index(count) * index(draws)  # type: ignore[arg-type] # None was refused
    first = whole_index(first_index, total)
    if in_memory:
        check_memory(total, shape)
    temperature = normal_float("temperature", temperature)
    guidance = resolved_guidance(guidance, configs if method == "two-step" else configs[:1])

    pixels = None
    if (x is not None) + (known is not None) != (mask is not None):
        words = "known and mask go together: images, and which of their pixels to keep"
        raise ValueError(f"{words}; `complete` takes x in place of known")
    if x is not None:
        pixels = known_pixels("x", x, mask, total // draws, (shape, device), configs)
        images = pixels.images.to(torch.promote_types(networks[0].dtype, torch.float32))
        pixels = KnownPixels(*(t.repeat_interleave(draws, 0) for t in (images, pixels.mask)))
    elif known is not None:
        pixels = known_pixels("known", known, mask, total, (shape, device), configs)
    seed = resolved_seed(seed, generator)
    if label is None and classes is not None and size is None:
        # If known pixels or x~ are given, the class of the image is unknown. A model trained with
        # label dropout then draws without a class; for others `labels_of` raises and asks for one.
        is_new = pixels is None and x_tilde is None
        label = "prior" if is_new else NO_CLASS if classes.dropout else None
    indices = range(first, first + total)
    labels = resolved_labels(label, classes, indices, draws, seed, device)

    noisy = drawer_of(networks[0], precision) if x_tilde is None or not is_pair else None
    denoiser: Drawer | None = None
    if method == "single-step":
        denoiser = PosteriorMean(networks[0])
    elif method == "two-step" and is_pair:
        denoiser = drawer_of(networks[1], precision)
    if noisy is not None and not is_pair:
        x_tilde = resolved_context(x_tilde, (total, *shape), noisy, cast=noisy is not model)
    for drawer in filter(None, (noisy, denoiser)):
        if pixels is not None:
            exact = torch.promote_types(drawer.image_dtype, torch.float32)
            dtypes = dict.fromkeys((exact, drawer.image_dtype))
            check_tensor("known", pixels.images, (total, *shape), drawer.device, dtypes)
    return Draw(
        indices=indices,
        seed=seed,
        shape=shape,
        method=method,
        temperature=temperature,
        guidance=guidance,
        labels=labels,
        known=pixels,
        x_tilde=x_tilde,
        smoothing=smoothing,
        noisy=noisy,
        denoiser=denoiser,
    )


def parts_of(model: Pair | Network, method: Method, own_size: bool) -> tuple[list[Any], Any]:
    """The networks and the smoothing that draw. ValueError for a method that they do not have."""
    networks, smoothing = [model], None
    if not isinstance(model, Network):
        networks, smoothing = [model.noisy, model.denoiser], model.smoothing
    elif isinstance(model, PixelCNNpp) and own_size:
        if model.config.conditioning != "none":
            raise ValueError("a denoiser draws given noisy images: name its noisy model too")
        # A noisy model draws x~, as a pair does with the method "noisy", or its mean given x~.
        if method != "two-step" and model.role != "noisy":
            words = "is for a pair, not for a single model: leave it out"
            raise SettingError("method", words)
        if method == "single-step" and model.smoothing is None:
            raise SettingError("method", "needs the noise, which these weights do not say")
        smoothing = model.smoothing if method == "single-step" else None
    if method == "single-step" and type(smoothing) is not GaussianSmoothing:
        kind = type(smoothing).__name__  # a subclass may have other noise
        raise ValueError(f"single-step denoising needs gaussian smoothing, got {kind}")
    return networks, smoothing


def check_memory(count: int, shape: tuple[int, int, int]) -> None:
    """Raise ValueError if the machine's memory cannot hold images."""
    needed = 4 * count * math.prod(shape)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(
            f"{count:,} images take {needed:,} bytes, but the machine has {memory:,}: draw fewer "
            "at a time, or into a folder"
        )


def normal_float(name: str, value: object, *, or_zero: bool = False) -> float:
    """A temperature or guidance weight as a float. Raises ValueError if it is out of range.

    The samplers compute in float32, so a number that may round to 0 there is refused.
    """
    normal = torch.finfo(torch.float32)
    number = float(value) if isinstance(value, Real) else math.nan
    if not normal.tiny <= number <= normal.max and not (or_zero and number == 0):
        zero = "0, or " if or_zero else ""
        raise SettingError(name, f"must be {zero}positive and a normal float32, got {value!r}")
    return number


def resolved_guidance(guidance: object, configs: Sequence[ModelConfig]) -> float:
    """The guidance weight. Unless it is 0, the networks with classes, which have these settings,
    must support guidance: a pass with a class and one without."""
    weight = normal_float("guidance", guidance, or_zero=True)
    for classes in [config.classes for config in configs if config.classes] or (None,):
        if weight and (classes is None or classes.dropout == 0):
            found = "has no classes" if classes is None else "was trained with label_dropout 0"
            words = f"needs a model with classes and label dropout; this one {found}"
            raise SettingError("guidance", words)
    return weight


def known_pixels(
    name: str,
    images: Tensor,
    mask: Tensor | None,
    count: int,
    place: tuple[tuple[int, int, int], torch.device],
    configs: Sequence[ModelConfig],
) -> KnownPixels:
    """The known pixels of `count` images (see `Choices`), for networks with these settings."""
    shape, device = place
    same = isinstance(images, Tensor) and images.shape[:1] == (1,)  # for all images
    check_images(name, images, (1 if same else count, *shape), device)
    mask = mask[None] if mask is not None and mask.ndim == 2 else mask
    rows = 1 if mask is not None and len(mask) == 1 else count
    check_tensor("mask", mask, (rows, *shape[1:]), device, (torch.bool,))
    assert mask is not None
    images = torch.where(mask[:, None], images.detach(), 0)
    if not images.isfinite().all():
        raise ValueError("known pixels must be finite, got a NaN or an infinity")
    known = KnownPixels(images.expand(count, -1, -1, -1), mask.expand(count, -1, -1))
    as_bytes = configs[-1].likelihood == "discretized"
    if len(configs) > 1 or configs[0].fourier_features:
        check_scale(name, known.values, as_bytes=as_bytes)
    if as_bytes and name == "x":
        known = KnownPixels(snap_half_precision(known.images), known.mask)
    return known


def resolved_seed(seed: int | EllipsisType | None, generator: torch.Generator | None) -> int:
    """The seed, from a generator, or drawn if it is None; by default 0."""
    if generator is not None:
        if seed is not None and seed is not ...:
            raise ValueError("seed and generator both decide the images: leave one out")
        device = generator.device
        return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    if seed is None:
        return drawn_seed()
    number = 0 if seed is ... else seed
    seed_words(number)
    return index(number)


def drawn_seed() -> int:
    """Draw a 32-bit seed, and report it by the logger `dsmooth`."""
    seed = secrets.randbits(32)
    LOG.warning("drew seed %d; seed=%d gives the same images again", seed, seed)
    return seed


def resolved_labels(
    label: Any,
    classes: Classes | None,
    indices: range,
    draws: int,
    seed: int,
    device: torch.device,
) -> Tensor | None:
    """The label (n,) int64 of every image, on `device`, so that a CUDA graph can capture it."""
    if isinstance(label, np.ndarray | Tensor) and label.ndim == 0:
        label = label.item()
    n = len(indices) // draws
    if isinstance(label, PER_IMAGE) and len(label) != n:
        raise SettingError("label", f"must have {n} classes, got {len(label)}")
    if classes is None or not isinstance(label, str) or label not in ("each", "prior"):
        # A tensor is checked before the copy to a GPU, where values are not.
        numbers = labels_of(label, classes, n, None if isinstance(label, Tensor) else device)
        if numbers is None:
            return None
        numbers = numbers.to(device)
        return numbers if draws == 1 else numbers.repeat_interleave(draws)
    count, first = len(classes.names), indices.start
    if label == "each":
        return (torch.arange(len(indices), device=device) + first) % count
    word = image_words(
        len(indices), 1, seed=seed, first_index=first, stream=Stream.CLASS, device=device
    )[:, 0, 0]
    if not classes.shares:
        return word * count >> 32
    # A class owns the words between two limits.
    limits = (round(2**32 * share) for share in accumulate(classes.shares[:-1]))
    return sum(((word >= limit).long() for limit in limits), torch.zeros_like(word))


def resolved_context(
    context: Tensor | None, shape: tuple[int, ...], drawer: Drawer, *, cast: bool
) -> Tensor | None:
    """The context of a network's images of a shape. cast: to the images' dtype, else it has it."""
    like = torch.empty((), dtype=drawer.image_dtype, device=drawer.device).expand(shape)
    if cast and isinstance(context, Tensor) and context.is_floating_point():
        context = context.to(like.dtype)
    check_context(context, drawer.config.conditioning, like)
    on_cpu = isinstance(drawer, PackedNetwork) and drawer.device.type == "cpu"
    if context is not None and on_cpu and not context.isfinite().all():
        raise ValueError("context must be finite, got a NaN or an infinity")
    return context


def drawer_of(model: Network, precision: Precision) -> Drawer:
    """Who draws for a network: the cached sampler if it can run, else one forward pass per pixel.

    A network that is packed, or made for forward passes, draws itself.
    """
    if not isinstance(model, PixelCNNpp):
        return model
    change, operands = changed_layer(model), sampler_precision(model.device, precision)
    if change is None and model.dtype == torch.float64:
        change = "the weights are float64: .float() rounds"
    reason = change or sampler_obstacle(model.device, operands)
    if reason is None:
        return packed_sampler(model, getattr(torch, operands))
    if precision == "bfloat16":
        raise ValueError(f"precision bfloat16 needs the cached sampler: {reason}")
    hint = "" if change else "; `dsmooth doctor` says more"
    warn_once("one forward pass per pixel: %s%s", reason, hint)
    return ForwardPasses(model)


def sampler_precision(device: torch.device, precision: Precision) -> Precision:
    """The precision of the cached sampler on `device`; "auto" is bfloat16 where it is faster."""
    if precision != "auto":
        return precision
    is_fast = sampler_obstacle(device) is None and has_fast_bfloat16(device)
    return "bfloat16" if is_fast else "float32"


def drawing_device(name: str) -> torch.device:
    """The device that draws: "auto" is a GPU only if the cached sampler runs there.

    Else images need many forward passes each.
    """
    device, cpu = choose_device(name), torch.device("cpu")
    obstacle = sampler_obstacle(device, sampler_precision(device, "auto"))
    if name != "auto" or obstacle is None or sampler_obstacle(cpu) is not None:
        return device
    LOG.info("drawing on the CPU: %s; device %s draws pixel by pixel", obstacle, device)
    return cpu


def keep_top(fraction: float, size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of the first round(fraction * H) rows: a prefix in raster order.

    Raises ValueError for a fraction outside 0 .. 1.
    """
    if not 0 <= fraction <= 1:
        raise SettingError("keep_top", f"must lie in 0 .. 1, got {fraction}")
    height, width = size
    return (torch.arange(height) < round(fraction * height)).view(1, -1, 1).expand(1, -1, width)
