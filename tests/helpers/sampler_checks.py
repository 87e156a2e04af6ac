"""The invariant of every sampler: each pixel is the one that its network draws."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dsmooth._extension import instruction_sets
from dsmooth.functional import logistic_mixture_sample, use_impl
from dsmooth.functional.logistic_mixture import MIN_LOG_SCALE, Mixture
from dsmooth.nn import PixelCNNpp
from dsmooth.philox import Stream, image_words, to_uniform
from dsmooth.sampling import CachedSampler, sequential_sample

SEED, FIRST = 2**40 + 5, 2**32 - 2
# Instruction sets with code of their own for the dtype.
INSTRUCTION_SETS = [name for name in instruction_sets() if name not in ("avx512bf16", "amx")]
BF16_INSTRUCTION_SETS = [name for name in instruction_sets() if name != "avx512"]


def make_sampler(model: PixelCNNpp, dtype: torch.dtype, code: str) -> Any:
    """code: an instruction set, "cuda", or "sequential" for one forward pass per pixel."""

    def sample(n: int, height: int, width: int, **given: Any) -> Tensor:
        return sequential_sample(model, n, height=height, width=width, **given)

    if code == "sequential":
        return SimpleNamespace(sample=sample, device=torch.device("cpu"))
    if code == "cuda":
        return CachedSampler(copy.deepcopy(model).cuda(), dtype)
    return CachedSampler(model, dtype, instruction_set=code)


def labels_of(n: int, n_classes: int, *, hidden: bool = False) -> Tensor | None:
    """Classes in turn; hidden: no class for every second image; None without classes."""
    if n_classes == 0:
        return None
    labels = (torch.arange(n) * 2 + 1) % n_classes
    return torch.where(torch.arange(n) % 2 == 0, labels, -1) if hidden else labels


def context_for(model: PixelCNNpp, n: int, height: int, width: int) -> Tensor | None:
    if model.config.conditioning == "none":
        return None
    generator = torch.Generator().manual_seed(1)
    return 0.5 * torch.randn(n, model.config.image_channels, height, width, generator=generator)


@torch.no_grad()
def teacher_forced(
    model: PixelCNNpp, x: Tensor, context, dtype, temperature: float, label=None, guidance=0.0
) -> tuple[Tensor, Tensor]:
    """Every pixel of x redrawn from one eager forward on x itself: the pixels, and how near its
    uniform is to a boundary between components (a distance in probability), (B, 1, H, W)."""
    model = copy.deepcopy(model).to(dtype)
    n, channels, height, width = x.shape
    with use_impl("reference"):
        given = (x.to(dtype), None if context is None else context.to(dtype))
        params = model(*given, label)
        if guidance:
            other = model(*given, -1)
            for mixture in (params, other):  # log-scales below the least one mean the same
                parts = Mixture.of(mixture, channels, model.config.n_atoms)
                parts.log_scales.clamp_(min=MIN_LOG_SCALE)
            params = other + (1 + guidance) * (params - other)
    conditioned = model.config.conditioning != "none"
    stream = Stream.SAMPLE_CONDITIONED if conditioned else Stream.SAMPLE
    words = image_words(n, height * width, seed=SEED, first_index=FIRST, stream=stream)
    u = to_uniform(words).to(dtype).view(n, height, width, 4).permute(0, 3, 1, 2)
    mixture = model.config.mixture
    drawn = logistic_mixture_sample(params, u, channels, temperature=temperature, **mixture)
    logits = Mixture.of(params, channels, model.config.n_atoms).logits / temperature
    boundaries = torch.softmax(logits, dim=1).cumsum(1)[:, :-1]
    if boundaries.shape[1] == 0:
        return drawn, torch.ones_like(u[:, :1])
    return drawn, (u[:, :1] - boundaries).abs().amin(1, keepdim=True)
