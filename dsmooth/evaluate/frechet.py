"""The Fréchet distance between two Gaussians, and the statistics of features that it compares.

The distance of Heusel et al. (2017) is called FID only with features of the Inception network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..fields import check_number, check_tensor
from ..files import read_npz
from ..work import map_parts

# How far from symmetric and from positive semi-definite a covariance may be, relative to its
# largest entry: accumulation in float32 stays well inside.
COVARIANCE_TOLERANCE = 1e-5
# Resamples of the images: the error that they estimate is itself uncertain by a sixth.
BOOTSTRAPS = 20


def frechet_distance(
    mean1: Tensor | ArrayLike,
    cov1: Tensor | ArrayLike,
    mean2: Tensor | ArrayLike,
    cov2: Tensor | ArrayLike,
) -> float:
    """||mean1 - mean2||^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), never negative.

    mean1, mean2: (D,); cov1, cov2: (D, D) symmetric positive semi-definite, of any rank. Arrays or
    tensors of any real dtype; the computation is in float64 on the CPU. With cov1 = A A' and cov2 =
    B B' the trace of the root is the sum of the singular values of A' B. This avoids the rounding
    noise of the root if a covariance lacks full rank.

    Raises ValueError for wrong shapes, values that are not finite, and covariances that are not
    symmetric or have a negative eigenvalue. Source: Dowson & Landau (1982); Heusel et al. (2017).
    """
    first = _as_float64("mean1", mean1, ("D",))
    second = _as_float64("mean2", mean2, first.shape)
    a, b = _factor("cov1", cov1, first.numel()), _factor("cov2", cov2, first.numel())
    root = torch.linalg.svdvals(a.T @ b).sum()
    squares = (first - second).square().sum() + a.square().sum() + b.square().sum()
    return max(0.0, float(squares - 2 * root))


def distance_with_error(
    features: Tensor, other: FeatureStatistics, *, seed: int = 0, repeats: int = BOOTSTRAPS
) -> tuple[float, float]:
    """The Fréchet distance of features (N, D), N >= 2, to `other`, and its standard error: the
    standard deviation over `repeats` resamples with replacement, by `seed`."""
    generator, n = torch.Generator().manual_seed(seed), len(features)
    resamples = [torch.randint(n, (n,), generator=generator) for _ in range(repeats)]

    def distance(rows: Tensor) -> float:
        batches = (features[part] for part in rows.split(1000))
        return FeatureStatistics.of_batches(batches).distance(other)

    value, *others = map_parts(distance, [torch.arange(n), *resamples])
    return value, float(torch.tensor(others, dtype=torch.float64).std())


def _as_float64(name: str, value: Tensor | ArrayLike, shape: Sequence[int | str]) -> Tensor:
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind in "biuf":
            value = torch.from_numpy(value.astype(np.float64))
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"{name} must be real, got {value.dtype}")
    check_tensor(name, value, shape)
    tensor = value.detach().to("cpu", torch.float64)
    if not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite among {tensor.numel()}")
    return tensor


def _factor(name: str, covariance: Tensor | ArrayLike, d: int) -> Tensor:
    """The matrix A (D, rank) with A A' = covariance."""
    cov = _as_float64(name, covariance, (d, d))
    scale = float(cov.abs().max())
    asymmetry = float((cov - cov.T).abs().max())
    if asymmetry > COVARIANCE_TOLERANCE * scale:
        raise ValueError(
            f"{name} must be symmetric, got entries that differ by {asymmetry:.3g} from their "
            f"mirror image (largest entry {scale:.3g})"
        )
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    if float(values[0]) < -COVARIANCE_TOLERANCE * scale:
        raise ValueError(
            f"{name} must be positive semi-definite, got an eigenvalue of {float(values[0]):.3g} "
            f"(largest entry {scale:.3g})"
        )
    # Smaller eigenvalues than these are rounding noise, 1e-16; but their roots, 1e-8, would count.
    kept = values > d * torch.finfo(torch.float64).eps * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D), float64; number of images, None if read from a file."""

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> FeatureStatistics:
        """Statistics of features in batches (B, D), floating point, on any device; B may be 0.

        By the update of Chan, Golub & LeVeque (1983) a large mean does not drown a small variance.
        Raises ValueError for other shapes, values that are not finite, and fewer than 2 images.
        """
        count, mean = 0, torch.zeros((), dtype=torch.float64)
        scatter = mean  # the sum of outer products of deviations from the mean
        for features in batches:
            batch = _as_float64("features", features, ("B", len(mean) if count else "D"))
            n = len(batch)
            if n:
                centred = batch - batch.mean(0)
                step = batch.mean(0) - mean
                between = torch.outer(step, step) * (count * n / (count + n))
                scatter = scatter + centred.T @ centred + between
                mean = mean + step * (n / (count + n))
                count += n
        check_number("images", count, 2)
        return cls(mean, scatter / (count - 1), count)

    def distance(self, other: FeatureStatistics) -> float:
        """The Fréchet distance to `other`."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read `mu` and `sigma` of a .npz, as pytorch-fid and ADM write it.

        Raises FileNotFoundError or ValueError, naming the file.
        """
        arrays = read_npz(Path(path), ("mu", "sigma"))
        mean = _as_float64(f"{path}: mu", arrays["mu"], ("D",))
        covariance = _as_float64(f"{path}: sigma", arrays["sigma"], 2 * mean.shape)
        return cls(mean, covariance, None)
