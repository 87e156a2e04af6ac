"""The numbers of the reproduction paper on MNIST, by Karlsson, Eriksson Möllerstedt and Bonde."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..functional import logistic_mixture_log_prob
from ..likelihoods import Likelihood
from ..smoothing import GaussianSmoothing

# The part of the entropy of Gaussian noise, per dimension, that is lost without its e.
EQUATION_4_BITS = 0.5 / math.log(2)
EQUATION_4_SENTENCE = (
    "Equation (4) of the reproduction on MNIST by Karlsson, Eriksson Möllerstedt and Bonde writes "
    "the entropy of Gaussian noise as log(2 pi sigma^2) / 2 instead of log(2 pi e sigma^2) / 2 per "
    "dimension, so its numbers are "
    f"1 / (2 ln 2) = {EQUATION_4_BITS:.4f} bits/dim too high."
)

# Bits/dim, of the density of x + 0.01 n, and the accuracy of linear probes in per cent.
PAPER_BITS = 3.23
PAPER_NOISE = 0.01
PAPER_PROBE = 98.5


def paper_sentence(readings: Sequence[float], likelihood: Likelihood) -> str:
    """Both readings of the reproduction paper's number beside those of a pair whose denoiser was
    trained with this likelihood."""
    per_level, by_equation = readings
    sentence = (
        f"The reproduction paper's {PAPER_BITS} is of the density of x + {PAPER_NOISE:g} n. Per "
        f"grey level this pair has {per_level:.2f}; if {PAPER_BITS} is |-{PAPER_BITS}|, in units "
        f"of [-1, 1] by equation (4) as printed, this pair has {by_equation:.2f}."
    )
    if likelihood == "discretized":
        sentence += (
            " Its denoiser is a model of bytes, so both are densities of a noisy pixel given the "
            "clean pixels before it. That is not the paper's quantity, and as a rule it is lower."
        )
    return sentence


def noised_log_density(
    y: Tensor, params: Tensor, atoms: Sequence[int] | Literal["all"] = ()
) -> Tensor:
    """log-densities of the pixels of y = x + 0.01 n, each given the pixels of x before it, summed.

    By a discretized mixture of the bytes x: (B,), nats. It is no density of y, whose pixels would
    be given those of y. y: (B, 1, H, W). params: (B, P, H, W). A pixel's density is the sum over
    bytes v of p(v) times the density of N(v, 0.01^2) at y; bytes beyond ten standard deviations add
    nothing.
    """
    noise, terms = GaussianSmoothing(PAPER_NOISE), []
    nearest = ((y + 1) * 127.5).round().clamp(0, 255)
    reach = math.ceil(10 * PAPER_NOISE * 127.5)
    for shift in range(-reach, reach + 1):
        byte = nearest + shift
        value = byte.clamp(0, 255) / 127.5 - 1
        mass = logistic_mixture_log_prob(value, params, "discretized", atoms=atoms)
        inside = (byte >= 0) & (byte <= 255)
        terms.append(
            torch.where(inside[:, 0], mass + noise.log_density(y - value)[:, 0], -math.inf)
        )
    return torch.stack(terms).logsumexp(0).double().sum((1, 2))
