"""Scores beside the Fréchet distance: kernel distance, Inception score, precision and recall."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import epoch_order
from ..fields import check_number
from ..philox import split_seed
from .features import import_fidelity


@dataclass(frozen=True)
class KernelDistance:
    """The squared maximum mean discrepancy under the kernel (x'y / D + 1)^3, unbiased.

    value: mean over subsets; it can be slightly negative. standard_deviation: over subsets.
    """

    value: float
    standard_deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    features1: Tensor,
    features2: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> KernelDistance:
    """The kernel distance (KID with Inception's features) of two sets of features.

    features1: (N1, D), features2: (N2, D), computed in float64 in subsets of `subset_size` (or all,
    if there are fewer), drawn without replacement as a function of (seed, subset). One subset is
    enough where a subset is all of both. progress: called with the number of subsets done.

    Raises ValueError for other shapes, fewer than 2 features and counts below 1.
    Source: Binkowski et al., Demystifying MMD GANs (ICLR 2018).
    """
    check_subsets(subsets, subset_size, seed)
    check_features(features1, features2)
    n1, n2 = len(features1), len(features2)
    m = min(subset_size, n1, n2)
    if m == n1 == n2:
        subsets = 1
    values = torch.empty(subsets, dtype=torch.float64)
    for k in range(subsets):
        one = features1[epoch_order(n1, 2 * k, seed)[:m]]
        two = features2[epoch_order(n2, 2 * k + 1, seed)[:m]]
        values[k] = squared_mmd(one, two)
        if progress:
            progress(k + 1)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, m)


def check_subsets(subsets: int, subset_size: int, seed: int) -> None:
    """Raise ValueError for counts, or a seed, that are out of range."""
    check_number("subsets", subsets)
    check_number("subset_size", subset_size, 2)
    split_seed(seed)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD^2 from x (M, D) and y (N, D): no row is paired with itself."""
    x, y = x.double(), y.double()
    m, n = len(x), len(y)
    within_x, within_y, across = (_kernel(*pair) for pair in ((x, x), (y, y), (x, y)))
    same_x = (within_x.sum() - within_x.trace()) / (m * (m - 1))
    same_y = (within_y.sum() - within_y.trace()) / (n * (n - 1))
    return float(same_x + same_y - 2 * across.mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return base * base * base


@dataclass(frozen=True)
class InceptionScore:
    """exp E[KL(p(y | x) || p(y))] of a classifier's probabilities.

    value: over all images at once, whatever their order. split_mean, split_deviation: over `splits`
    consecutive parts, as Salimans et al. (2016) report it; lower, since p(y) is of fewer images.
    """

    value: float
    split_mean: float
    split_deviation: float
    splits: int


def inception_score(logits: Tensor, *, splits: int = 10) -> InceptionScore:
    """The Inception score of images whose class logits (N, K) are given; in float64.

    splits: parts of the second number, at most N. Raises ValueError for other shapes and counts.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, K), got {tuple(logits.shape)}")
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must lie in 1 .. {n} (the number of images), got {splits}")
    log_p = logits.double().log_softmax(1)

    def score(part: Tensor) -> float:
        log_marginal = part.logsumexp(0) - math.log(len(part))
        return float((part.exp() * (part - log_marginal)).sum(1).mean().exp())

    bounds = [i * n // splits for i in range(splits + 1)]
    scores = [score(log_p[a:b]) for a, b in itertools.pairwise(bounds)]
    parts = torch.tensor(scores, dtype=torch.float64)
    return InceptionScore(score(log_p), float(parts.mean()), float(parts.std(correction=0)), splits)


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of the samples near real images, and of the real images near samples, in [0, 1].

    An image is near a set if it lies in a ball around one of the set's images. The ball reaches to
    that image's `neighbours`-th neighbour in the set.
    """

    precision: float
    recall: float
    neighbours: int


def precision_and_recall(
    samples: Tensor, real: Tensor, *, neighbours: int = 3, rows: int = 10_000
) -> PrecisionRecall:
    """Precision and recall of samples by their features (N, D) and the real ones (M, D).

    Computed by torch-fidelity in float64, `rows` x N distances at a time. Raises ValueError for
    other shapes and fewer than neighbours + 1 images, and ModuleNotFoundError without the extra
    "fid". Source: Kynkäänniemi et al. (NeurIPS 2019).
    """
    prc = import_fidelity("metric_prc", "precision and recall need")
    check_features(samples, real)
    few = min(len(samples), len(real))
    if few <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images, got {few}")
    found = prc.prc_features_to_metric(
        samples.double(),
        real.double(),
        prc_neighborhood=neighbours,
        prc_batch_size=rows,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found["precision"], found["recall"], neighbours)


def check_features(*features: Tensor) -> None:
    """Raise ValueError unless each is (N, D) with N >= 2 and the same D, all finite."""
    d = features[0].shape[-1] if features[0].ndim else 0
    for number, x in enumerate(features, start=1):
        if x.ndim != 2 or x.shape[1] != d or d < 1 or len(x) < 2:
            raise ValueError(
                f"features{number} must have shape (N, {d or 'D'}) with N >= 2, "
                f"got {tuple(x.shape)}"
            )
        if not x.isfinite().all():
            raise ValueError(f"features{number} must be finite")
