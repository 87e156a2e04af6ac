"""Fréchet distance, its standard error, and statistics of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth.evaluate.frechet import FeatureStatistics, bootstrap_error, frechet_distance
from dsmooth.machine import torch_threads
from tests.helpers.data_makers import refuses

pytestmark = pytest.mark.quick


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(d: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A mean and a covariance of that rank."""
    factor = normal(d, rank, seed=seed) / d**0.5
    return normal(d, seed=seed + 1), factor @ factor.T


seeds = st.integers(0, 2**31)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(-9, 9)] * 2), min_size=1))
@settings(max_examples=30, deadline=None)
def test_diagonal_covariances_have_a_closed_form(axes: list[tuple[float, ...]]) -> None:
    var1, var2, mean1, mean2 = torch.tensor(axes, dtype=torch.float64).T
    expected = (mean1 - mean2).square().sum() + (var1.sqrt() - var2.sqrt()).square().sum()
    distance = frechet_distance(mean1, torch.diag(var1), mean2, torch.diag(var2))
    # Variances below D eps of the largest are taken for rounding noise.
    slack = 1e-6 * float(var1.max() * var2.max()) ** 0.5 * len(axes)
    assert distance == pytest.approx(float(expected), rel=1e-12, abs=1e-12 + slack)


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_it_is_a_distance_that_rotations_keep(seed: int, d: int, rank1: int, rank2: int) -> None:
    (m1, c1), (m2, c2) = gaussian(d, min(rank1, d), seed), gaussian(d, min(rank2, d), seed + 2)
    distance = frechet_distance(m1, c1, m2, c2)
    close = pytest.approx(distance, rel=1e-6)
    assert frechet_distance(m2, c2, m1, c1) == close
    assert 0 <= frechet_distance(m1, c1, m1, c1) < 1e-12 * (1 + float(c1.trace()))
    q, _ = torch.linalg.qr(normal(d, d, seed=seed + 7))
    assert frechet_distance(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T) == close
    assert frechet_distance(3 * m1, 9 * c1, 3 * m2, 9 * c2) == pytest.approx(9 * distance, rel=1e-6)


def test_fewer_images_than_features_agree_with_the_exact_factors() -> None:
    """Sample covariances of rank N - 1: their factors are the centred features themselves."""
    x, y = normal(40, 200, seed=1), 0.3 + 1.7 * normal(60, 200, seed=2)
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    distance = frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert distance == pytest.approx(float(expected - 2 * root), rel=1e-10)


def test_agrees_with_torch_fidelity() -> None:
    """On the same features, positive ones with a decaying spectrum, as after a ReLU."""
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    mixing = normal(64, 64, seed=9) * torch.logspace(0, -2, 64, dtype=torch.float64)[:, None]
    x, y = ((normal(300, 64, seed=s) @ mixing + 0.1 * s).relu() for s in (3, 4))
    distance = FeatureStatistics.of_batches([x]).distance(FeatureStatistics.of_batches([y]))
    statistics = [fidelity.fid_features_to_statistics(z) for z in (x, y)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_arrays_lists_and_any_real_dtype_are_taken() -> None:
    (m1, c1), (m2, c2) = gaussian(4, 4, 0), gaussian(4, 4, 5)
    distance = frechet_distance(m1, c1, m2, c2)
    assert isinstance(distance, float)
    assert frechet_distance(m1.numpy(), c1.numpy(), m2.tolist(), c2.tolist()) == distance
    single = frechet_distance(*(x.float().requires_grad_() for x in (m1, c1, m2, c2)))
    assert single == pytest.approx(distance, rel=1e-5)
    assert frechet_distance([0, 0], np.eye(2, dtype=int), [3, 4], np.eye(2, dtype=int)) == 25
    for kind in (">f8", np.longdouble, np.float16, np.uint16, bool):
        assert frechet_distance(np.ones(2, kind), np.eye(2, dtype=kind), [4, 5], np.eye(2)) == 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 1)}, r"mean1 must have shape \(D,\), got \(3, 1\)"),
        ({2: torch.zeros(2)}, r"mean2 must have mean1's shape \(3,\), got \(2,\)"),
        ({1: torch.eye(2)}, r"cov1 must have shape \(3, 3\), got \(2, 2\)"),
        ({0: torch.tensor([0, torch.nan, 0])}, "mean1 must be finite, got 1 NaN or infinite"),
        ({3: torch.eye(3) * torch.inf}, "cov2 must be finite, got 9 NaN"),
        ({1: torch.eye(3) + torch.eye(3).roll(1, 0)}, "cov1 must be symmetric, got entries that"),
        ({3: -torch.eye(3)}, "cov2 must be positive semi-definite, got an eigenvalue of -1"),
        ({1: torch.eye(3) * 1j}, "cov1 must be real"),
    ],
)
def test_what_is_no_gaussian_is_named(change: dict[int, Tensor], message: str) -> None:
    arguments = [torch.zeros(3), torch.eye(3), torch.zeros(3), torch.eye(3)]
    for position, value in change.items():
        arguments[position] = value
    refuses(message, frechet_distance, *arguments)


@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_statistics_do_not_depend_on_batches_or_order(seed: int, sizes: list[int]) -> None:
    x = 1000 + normal(sum(sizes) + 2, 5, seed=seed)  # a mean that would drown naive sums
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    for batches in ([x], x[order].split([*sizes, 2])):
        statistics = FeatureStatistics.of_batches(batches)
        assert statistics.count == len(x)
        torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(statistics.covariance, expected, rtol=1e-10, atol=1e-10)


def test_statistics_come_back_from_a_file(tmp_path: Path) -> None:
    description = {"data": "mnist", "extractor": {"name": "é"}}
    statistics = FeatureStatistics.of_batches([normal(10, 3)], description)
    path = tmp_path / "reference.npz"
    statistics.save(path)
    again = FeatureStatistics.load(path)
    assert (again.description, again.count) == (description, 10)
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.covariance, statistics.covariance)
    with np.load(path, allow_pickle=False) as arrays:  # the names that pytorch-fid reads
        assert np.array_equal(arrays["mu"], statistics.mean.numpy())


def test_files_that_are_no_statistics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    refuses(r"x\.npz", FeatureStatistics.load, path, error=FileNotFoundError)
    pair = {"mu": np.zeros(2), "sigma": np.zeros((3, 3))}
    for arrays, message in (
        ({"mu": np.zeros(2)}, "must hold mu, sigma, found no sigma"),
        ({**pair, "n": 5, "description": "{}"}, r"must hold mu \(D,\), sigma \(D, D\)"),
        ({"mu": [0], "sigma": [[1]], "description": "{"}, "cannot be read as saved statistics"),
        ({**pair, "mu": ["a"], "n": 5, "description": "{}"}, "x.npz: mu must be real, got <U1"),
        ({**pair, "n": 5, "description": np.array([{}], object)}, "without pickled objects"),
    ):
        np.savez(path, **arrays)
        refuses(message, FeatureStatistics.load, path)
    path.write_bytes(b"PK\x03\x04 cut")
    refuses("cannot be read as a", FeatureStatistics.load, path)


def test_features_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(4, 3)
    for batches, message in (
        ([x, torch.zeros(2, 4)], r"must have shape \(B, 3\), got \(2, 4\)"),
        ([x[0]], r"must have shape \(B, D\), got \(3,\)"),
        ([x / 0], "features must be finite"),
        ([x[:1], x[:0]], "at least 2 images, got 1"),
        ([], "at least 2 images, got 0"),
    ):
        refuses(message, FeatureStatistics.of_batches, batches)


def test_the_bootstrap_gives_the_scatter_of_independent_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    real = FeatureStatistics.of_batches([torch.randn(5000, 3, generator=generator)])
    distances = []
    for _ in range(60):
        samples = 0.7 + torch.randn(300, 3, generator=generator)
        distances.append(FeatureStatistics.of_batches([samples]).distance(real))
    error = bootstrap_error(samples, real, repeats=100)
    assert error == pytest.approx(float(np.std(distances)), rel=0.4)
    seen: list[int] = []
    with torch_threads(3):  # side by side
        assert error == bootstrap_error(samples, real, repeats=100, progress=seen.append)
    assert seen == [*range(1, 101)]
    assert error != bootstrap_error(samples, real, repeats=100, seed=1)
