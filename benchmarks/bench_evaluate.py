"""Measures: bits/dim of a pair, features of the packaged classifier, the Fréchet distance.

The distance is also computed by the textbook formula, a root of the product of the covariances.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.bench_data import random_images
from benchmarks.measure import Bench, Work, quick, smoke
from benchmarks.networks import SMALL, Network, make_pair
from dsmooth.data import load_dataset
from dsmooth.evaluate.features import extract_features, make_extractor
from dsmooth.evaluate.frechet import frechet_distance
from dsmooth.evaluate.likelihood import bits_per_dim, score_pair

pytestmark = pytest.mark.usefixtures("native")


@pytest.mark.parametrize(
    ("network", "images"),
    [
        smoke(SMALL, 4, id="bits-small"),
        quick(Network(n_filters=24, n_resnet=2), 256, id="bits-F24-R2"),
    ],
)
def bench_bits(bench: Bench, network: Network, images: int) -> None:
    """The bound of a concat pair, one draw of noise per image, on 256 images."""
    pair = make_pair(network, "concat")
    dataset = random_images(images, 1, network.size)

    def score(batch_size: int = 64) -> float:
        return bits_per_dim(score_pair(pair, dataset, batch_size=batch_size)).value

    assert score() == pytest.approx(score(batch_size=3), rel=1e-4)
    work = Work(images=images)
    bench.compare({"score": score}, "score", rounds=5, shape=dataset.images.shape, work=work)


@pytest.mark.parametrize("count", [smoke(8, id="features-small"), quick(1000, id="features")])
def bench_features(bench: Bench, count: int) -> None:
    """1,000 images through the MNIST classifier that the package brings."""
    extractor = make_extractor("mnist-classifier")
    images = load_dataset("mnist", "test").images[:count]

    def extract() -> torch.Tensor:
        return extract_features(images, extractor).features

    assert extract().shape[0] == count
    work = Work(images=count)
    bench.compare({"extract": extract}, "extract", rounds=7, shape=images.shape, work=work)


@pytest.mark.parametrize(
    "dimension", [smoke(8, id="distance-small"), quick(2048, id="distance-2048")]
)
def bench_distance(bench: Bench, dimension: int) -> None:
    """Two Gaussians in the dimension of Inception's features."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = draw(2, dimension)
    covariances = [torch.cov(draw(dimension, 2 * dimension)) for _ in range(2)]

    def ours() -> float:
        return frechet_distance(means[0], covariances[0], means[1], covariances[1])

    def textbook() -> float:
        roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt()
        traces = covariances[0].trace() + covariances[1].trace()
        return float((means[0] - means[1]).square().sum() + traces - 2 * roots.sum())

    assert ours() == pytest.approx(textbook(), rel=1e-6)
    contenders = {"eigenvalues of the product": textbook, "ours": ours}
    settings = {"shape": (dimension,), "dtype": torch.float64}
    bench.compare(contenders, "ours", rounds=1, warmup=0, **settings)
