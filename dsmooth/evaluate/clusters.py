"""Labels that images give themselves: clusters of equal size of a noisy model's features.

An image's features are the streams of all blocks for the clean image, averaged over parts of each
map and whitened along their leading principal components. k-means makes the clusters, and a price
on each makes them equally large (docs/math.md, section 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageDataset, own_images
from ..fields import check_numbers
from ..machine import torch_seed
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS
from ..nn.weights import in_evaluation
from ..progress import portion, progress
from ..work import batches, map_parts
from .probe import CALL_IMAGES, joined_features

# Principal components of the features, the least number of images for each, and images that they
# are computed from: the features of all would fill the memory.
COMPONENTS, IMAGES_PER_COMPONENT, FITTED_IMAGES = 50, 10, 20_000
# k-means: starts, rounds of a start, and steps of the prices in a round and after the last one.
STARTS, ROUNDS, PRICE_STEPS, LAST_PRICE_STEPS = 10, 40, 20, 60
LARGEST = 1e25  # a feature: float32 holds the sums of smaller ones


def cluster(model: PixelCNNpp, images: Sized, n_clusters: int, *, seed: int = 0) -> Tensor:
    """Labels of images by clusters of a model's features: (N,) int64 in 0 .. n_clusters - 1.

    model: a model without context, such as the noisy model of a pair; of one with classes the
    features are those of no class. images: as `dsmooth.data.own_images` takes them. The clusters
    have N / n_clusters members, to within one or two; they are a function of the model, the images,
    their order and the seed. Raises ValueError for an argument that does not fit, and for a model
    with context; ArithmeticError for features that are not finite.
    """
    return find_clusters(model, own_images(images), n_clusters, seed=seed)[0]


def cluster_splits(
    model: PixelCNNpp, train: ImageDataset, test: ImageDataset, n_clusters: int, *, seed: int = 0
) -> tuple[ImageDataset, ImageDataset]:
    """Training images with the labels of `cluster`, and held-out images with the nearest ones.

    Clusters of other images or of another call have other names, and never pass for these.
    """
    with progress("features of training images", len(train)):
        labels, labels_of = find_clusters(model, train, n_clusters, seed=seed)
    with progress("features of held-out images", len(test)):
        nearest = labels_of(test)
    mark = replace(train, labels=labels, class_names=()).digest[:6]
    names = tuple(f"cluster {number} of {mark}" for number in range(n_clusters))
    train = replace(train, labels=labels, class_names=names)
    return train, replace(test, labels=nearest, class_names=names)


@torch.no_grad()
def find_clusters(
    model: PixelCNNpp, images: ImageDataset, n_clusters: int, *, seed: int = 0
) -> tuple[Tensor, Callable[[ImageDataset], Tensor]]:
    """Labels (N,) int64 of images, and a function that gives other images those of the nearest
    clusters, which may be of any size. Arguments and errors as of `cluster`."""
    n = len(images)
    check_numbers(n_clusters=(n_clusters, 2, n), seed=(seed, 0, 2**64 - 1))
    fitted = torch.arange(n)
    if n > FITTED_IMAGES:
        fitted = torch.linspace(0, n - 1, FITTED_IMAGES, dtype=torch.float64).long()
    rest = torch.ones(n, dtype=torch.bool).index_fill(0, fitted, False).nonzero()[:, 0]

    with portion(len(fitted) / n):
        features = torch.empty(0)  # held once, for they are most of the memory
        done = 0
        for rows in _features(model, images, fitted):
            features = features if done else rows.new_empty(len(fitted), rows.shape[1])
            features[done : done + len(rows)] = rows
            done += len(rows)
    whiten, z = _fit_whitening(features, seed)
    del features
    with portion(len(rest) / n):
        parts = [z, *map(whiten, _features(model, images, rest))]
    z = torch.cat(parts)[torch.cat([fitted, rest]).argsort()]
    generator = torch.Generator().manual_seed(seed)
    starts = (_equal_clusters(z, n_clusters, generator) for _ in range(STARTS))
    _, centres, prices = min(starts, key=lambda start: start[0])

    @torch.no_grad()
    def labels_of(others: ImageDataset) -> Tensor:
        features = _features(model, others, torch.arange(len(others)))
        return _costs(torch.cat([*map(whiten, features)]), centres, prices).argmin(1)

    return _costs(z, centres, prices).argmin(1), labels_of


def _features(model: PixelCNNpp, images: ImageDataset, indices: Tensor) -> Iterator[Tensor]:
    """Features (B, D) float32 of the images `indices`, batch by batch."""
    model, parameter = in_evaluation(model), model.head.bias

    def features_of(batch: range) -> Tensor:
        # The last call is filled up, so that an image's sums are rounded alike in any batch.
        numbers = torch.arange(batch.start, batch.start + CALL_IMAGES).clamp(max=len(indices) - 1)
        x = images.batch(indices[numbers]).to(parameter.device, parameter.dtype)
        streams = model.features(x, label=NO_CLASS if model.config.classes else None)
        rows = joined_features(streams.values())[: len(batch)].float().cpu()
        if not rows.abs().amax() < LARGEST:  # true for NaN
            raise ArithmeticError("the model has features that are not finite or huge: it diverged")
        return rows

    in_threads = parameter.device.type == "cpu"
    return map_parts(features_of, batches(len(indices), CALL_IMAGES), in_threads=in_threads)


def _fit_whitening(features: Tensor, seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The projection (B, D) -> (B, d) that whitens features (n, D), which it changes, and them."""
    n, size = features.shape
    dimensions = max(1, min(COMPONENTS, n // IMAGES_PER_COMPONENT, size))
    mean = features.mean(0)
    features -= mean
    with torch_seed(seed):
        _, scales, directions = torch.svd_lowrank(features, min(dimensions + 10, n, size), niter=4)
    # A direction in which nothing varies counts for nothing.
    least = 1e-6 * scales[0].clamp(min=torch.finfo(torch.float32).tiny)
    scales = torch.where(scales > least, scales, torch.inf)[:dimensions]
    projection = directions[:, :dimensions] * (n**0.5 / scales)
    return lambda rows: (rows - mean) @ projection, features @ projection


def _costs(z: Tensor, centres: Tensor, prices: Tensor) -> Tensor:
    """|z - centre|^2 - |z|^2 + price of each image and cluster: (N, K)."""
    return centres.square().sum(1) - 2 * z @ centres.T + prices


def _equal_clusters(z: Tensor, k: int, generator: torch.Generator) -> tuple[float, Tensor, Tensor]:
    """k-means whose clusters have about len(z) / k members: (mean squared distance, centres,
    prices)."""
    n = len(z)
    centres = z[torch.randperm(n, generator=generator)[:k]]
    prices, step = torch.zeros(k), 0.0

    def level(prices: Tensor, costs: Tensor, steps: int) -> Tensor:
        """Prices after ever smaller steps up for large clusters and down for small ones."""
        for i in range(steps):
            sizes = (costs + prices).argmin(1).bincount(minlength=k)
            prices = prices + step * (1 - i / (steps + 2)) * (k * (sizes + 1) / n).log()
        return prices

    for _ in range(ROUNDS):
        costs = _costs(z, centres, torch.zeros(k))
        nearest = costs.topk(2, largest=False).values
        step = float((nearest[:, 1] - nearest[:, 0]).mean()) / 2
        prices = level(prices, costs, PRICE_STEPS)
        members = F.one_hot((costs + prices).argmin(1), k).to(z.dtype)
        centres = members.T @ z / members.sum(0).clamp(min=1)[:, None]
    costs = _costs(z, centres, torch.zeros(k))
    prices = level(prices, costs, LAST_PRICE_STEPS)
    labels = (costs + prices).argmin(1)
    return float((z - centres[labels]).square().sum(1).mean()), centres, prices


def agreement(clusters: Tensor, labels: Tensor) -> tuple[float, float]:
    """Purity, the share of images with the most frequent label of their cluster, and mutual
    information over the mean of both entropies, of clusters (N,) and labels (N,), int64."""
    counts = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1, dtype=torch.float64)
    counts.index_put_((clusters, labels), counts.new_ones(()), accumulate=True)
    joint = counts / counts.sum()
    entropies = [float(torch.special.entr(p).sum()) for p in (joint, joint.sum(0), joint.sum(1))]
    mutual, mean = entropies[1] + entropies[2] - entropies[0], (entropies[1] + entropies[2]) / 2
    return float(counts.amax(1).sum() / counts.sum()), mutual / mean if mean else 1.0
