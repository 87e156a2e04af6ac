"""Fréchet distance, streaming statistics, kernel distance and Inception score."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth.evaluate.frechet import FeatureStatistics, bootstrap_error, frechet_distance
from dsmooth.evaluate.scores import (
    PrecisionRecall,
    inception_score,
    kernel_distance,
    precision_and_recall,
    squared_mmd,
)
from dsmooth.machine import torch_threads

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


def test_agrees_with_other_implementations() -> None:
    """On the same features, positive ones with a decaying spectrum, as after a ReLU."""
    mixing = normal(64, 64, seed=9) * torch.logspace(0, -2, 64, dtype=torch.float64)[:, None]
    x, y = ((normal(300, 64, seed=s) @ mixing + 0.1 * s).relu() for s in (3, 4))
    one, two = FeatureStatistics(64), FeatureStatistics(64)
    one.update(x)
    two.update(y)
    distance = one.distance(two)

    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fidelity.fid_features_to_statistics(z) for z in (x, y)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)

    pytorch_fid = pytest.importorskip("pytorch_fid.fid_score")
    arrays = [s[key] for s in statistics for key in ("mu", "sigma")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of the way it is called
        theirs = float(pytorch_fid.calculate_frechet_distance(*arrays))
    assert distance == pytest.approx(theirs, rel=1e-6)


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
    with pytest.raises(ValueError, match=message):
        frechet_distance(*arguments)


@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_statistics_do_not_depend_on_batches_or_order(seed: int, sizes: list[int]) -> None:
    x = 1000 + normal(sum(sizes) + 2, 5, seed=seed)  # a mean that would drown naive sums
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    whole, parts, merged = FeatureStatistics(5), FeatureStatistics(5), FeatureStatistics(5)
    whole.update(x)
    for part in x[order].split([*sizes, 2]):
        parts.update(part)
        one = FeatureStatistics(5)
        one.update(part)
        merged.merge(one)
    for statistics in (whole, parts, merged):
        assert statistics.count == len(x)
        torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-14, atol=0)
        expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
        torch.testing.assert_close(statistics.covariance, expected, rtol=1e-10, atol=1e-10)


def test_statistics_come_back_from_a_file(tmp_path: Path) -> None:
    statistics = FeatureStatistics(3, {"data": "mnist", "extractor": {"name": "é"}})
    statistics.update(normal(10, 3))
    path = tmp_path / "reference.npz"
    statistics.save(path)
    again = FeatureStatistics.load(path)
    assert again.description == statistics.description
    assert again.count == 10
    torch.testing.assert_close(again.covariance, statistics.covariance, rtol=1e-15, atol=0)
    assert again.distance(statistics) < 1e-14
    again.update(normal(5, 3, seed=1))
    statistics.update(normal(5, 3, seed=1))
    torch.testing.assert_close(again.covariance, statistics.covariance)
    with np.load(path, allow_pickle=False) as arrays:  # the names that pytorch-fid reads
        assert np.array_equal(arrays["mu"], FeatureStatistics.load(path).mean.numpy())


def test_files_that_are_no_statistics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"x\.npz"):
        FeatureStatistics.load(path)
    pair = {"mu": np.zeros(2), "sigma": np.zeros((3, 3))}
    for arrays, message in (
        ({"mu": np.zeros(2)}, "found no sigma, n, description"),
        ({**pair, "n": 5, "description": "{}"}, r"must hold mu \(D,\), sigma \(D, D\)"),
        ({"mu": [0], "sigma": [[1]], "n": 1, "description": "{}"}, "must hold n >= 2, got 1"),
        ({**pair, "mu": ["a"], "n": 5, "description": "{}"}, "x.npz: mu must be real, got <U1"),
        ({**pair, "n": 5, "description": np.array([{}], object)}, "without pickled objects"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            FeatureStatistics.load(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="cannot be read as a"):
        FeatureStatistics.load(path)


def test_kernel_distance_agrees_with_torch_fidelity() -> None:
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = normal(120, 16, seed=1).relu(), 0.2 + normal(120, 16, seed=2).relu()
    keys = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    theirs = kid.kernel_mmd(x.numpy(), y.numpy(), kid_kernel_poly_gamma=None, **keys)
    ours = kernel_distance(x, y, subset_size=1000)
    assert ours.value == pytest.approx(theirs, rel=1e-9)
    assert (ours.subsets, ours.subset_size) == (1, 120)
    # Each of several subsets is a set that the other implementation scores alike on average.
    subsets = kernel_distance(x, y, subsets=400, subset_size=30, seed=3)
    error = subsets.standard_deviation / 400**0.5
    assert abs(subsets.value - theirs) < 4 * error
    assert subsets == kernel_distance(x, y, subsets=400, subset_size=30, seed=3)
    assert subsets != kernel_distance(x, y, subsets=400, subset_size=30, seed=4)


def test_kernel_distance_is_unbiased() -> None:
    """Averaged over pairs of sets from one distribution it is zero, unlike the plain estimate."""
    values = torch.tensor([squared_mmd(normal(12, 4, seed=2 * i), normal(20, 4, seed=2 * i + 1))
                           for i in range(400)])  # fmt: skip
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20


def test_inception_score_agrees_with_torch_fidelity_and_its_limits() -> None:
    logits = 3 * normal(103, 10, seed=5)
    score = inception_score(logits, splits=10)
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    theirs = isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert score.split_mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert score.split_deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    whole = isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    assert score.value == pytest.approx(whole["inception_score_mean"], rel=1e-9)
    assert inception_score(logits.flip(0)).value == pytest.approx(score.value, rel=1e-12)
    sure = 1000 * torch.eye(10)
    assert inception_score(sure, splits=1).value == pytest.approx(10)
    assert inception_score(torch.zeros(8, 10), splits=2).value == pytest.approx(1)


def test_precision_is_of_the_samples_and_recall_of_the_real_images() -> None:
    pytest.importorskip("torch_fidelity")
    left, right = normal(40, 3, seed=1), 50 + normal(40, 3, seed=2)
    both, few = torch.cat([left, right]), torch.cat([left[::2], 500 + normal(20, 3, seed=3)])
    found = precision_and_recall(few, both)
    assert found.precision == 0.5  # half of the samples are where no real image is
    assert 0.3 < found.recall <= 0.5  # nothing of the right half is found
    other = precision_and_recall(both, few)
    assert (other.precision, other.recall) == (found.recall, found.precision)
    assert precision_and_recall(both, both.flip(0), rows=7) == PrecisionRecall(1, 1, 3)
    with pytest.raises(ValueError, match="need more than 3 images, got 3"):
        precision_and_recall(both, few[:3])


def test_what_does_not_fit_is_refused() -> None:
    statistics, x = FeatureStatistics(3), torch.zeros(4, 3)
    for call, arguments, message in (
        (FeatureStatistics, (0,), "dimension must be at least 1, got 0"),
        (statistics.update, (torch.zeros(2, 4),), r"must have shape \(B, 3\), got \(2, 4\)"),
        (statistics.update, (torch.full((2, 3), torch.nan),), "features must be finite"),
        (statistics.merge, (FeatureStatistics(2),), "other must have dimension 3, got 2"),
        (statistics.distance, (statistics,), "at least 2 images, got 0"),
        (
            kernel_distance,
            (x, torch.zeros(4, 2)),
            r"features2 must have shape \(N, 3\) with N >= 2",
        ),
        (kernel_distance, (x[:1], x), "with N >= 2, got"),
        (kernel_distance, (x / 0, x), "features1 must be finite"),
        (partial(kernel_distance, subset_size=1), (x, x), "subset_size must be at least 2, got 1"),
        (partial(inception_score, splits=5), (x,), r"splits must lie in 1 \.\. 4"),
        (inception_score, (x[0],), r"must have shape \(N, K\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)
    assert statistics.count == 0
    statistics.update(x[:1])
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        statistics.distance(statistics)


def test_the_bootstrap_gives_the_scatter_of_independent_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    real = FeatureStatistics(3)
    real.update(torch.randn(5000, 3, generator=generator))
    distances = []
    for _ in range(60):
        samples = 0.7 + torch.randn(300, 3, generator=generator)
        statistics = FeatureStatistics(3)
        statistics.update(samples)
        distances.append(statistics.distance(real))
    error = bootstrap_error(samples, real, repeats=100)
    assert error == pytest.approx(float(np.std(distances)), rel=0.4)
    seen: list[int] = []
    with torch_threads(3):  # side by side
        assert error == bootstrap_error(samples, real, repeats=100, progress=seen.append)
    assert seen == [*range(1, 101)]
    assert error != bootstrap_error(samples, real, repeats=100, seed=1)
