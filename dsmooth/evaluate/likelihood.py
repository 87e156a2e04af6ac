"""Bits per dimension of a pair on held-out images (math.md section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import ImageDataset
from ..pair import SmoothedPair

# A density in units of [-1, 1] becomes one per grey level by adding this many bits/dim.
LEVEL_BITS = math.log2(127.5)


@dataclass(frozen=True)
class BitsPerDim:
    """A bound in bits per sub-pixel, and the three terms it is the sum of.

    likelihood: "discretized" for a bound on the probability of bytes (comparable with the
    literature), "continuous" for one on a density in units of [-1, 1].
    standard_error: over images; n_images and n_noise: how many images and draws per image.
    """

    likelihood: str
    value: float
    standard_error: float
    noisy: float
    smoothing: float
    denoiser: float
    n_images: int
    n_noise: int


def evaluate_bits_per_dim(
    pair: SmoothedPair,
    dataset: ImageDataset,
    *,
    limit: int | None = None,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Score the first `limit` images (all by default), each with `n_noise` draws of noise.

    The bound is -E_q[log p(x~) - log q(x~ | x) + log p(x | x~)] / (d ln 2), averaged over images.
    The noise of an image depends on (seed, its index, draw), so the result does not depend on
    batch_size beyond rounding. progress is called with (images done, images in all).
    Raises ValueError for counts below 1.
    """
    n = min(limit or len(dataset), len(dataset))
    if n < 1 or n_noise < 1 or batch_size < 1:
        raise ValueError("limit, n_noise and batch_size must be at least 1")
    device = next(pair.parameters()).device
    sums: dict[str, list[Tensor]] = {"noisy": [], "smoothing": [], "denoiser": []}
    for first in range(0, n, batch_size):
        x = dataset.batch(torch.arange(first, min(first + batch_size, n))).to(device)
        draws = [pair.elbo_terms(x, seed, first, repeat) for repeat in range(n_noise)]
        for name, parts in sums.items():
            parts.append(torch.stack([draw[name].double() for draw in draws]).mean(0))
        if progress:
            progress(first + x.shape[0], n)
    nats = {name: torch.cat(parts) for name, parts in sums.items()}
    bits = {name: -v / (math.log(2) * dataset.images[0].numel()) for name, v in nats.items()}
    total = sum(bits.values(), torch.zeros(1))
    return BitsPerDim(
        likelihood=pair.denoiser.config.likelihood,
        value=float(total.mean()),
        standard_error=float(total.std() / math.sqrt(n)) if n > 1 else math.nan,
        noisy=float(bits["noisy"].mean()),
        smoothing=float(bits["smoothing"].mean()),
        denoiser=float(bits["denoiser"].mean()),
        n_images=n,
        n_noise=n_noise,
    )
