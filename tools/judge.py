"""Samples of MNIST judged by networks and features that no setting of the models was chosen with.

    python -m tools.judge MNIST [COUNT [NAME ...]]

MNIST is the folder of the full data. COUNT samples of each of the packaged models NAME are drawn
with seed 0 as `pair.sample` draws them, so the cluster or digit of each is drawn too. Prints three
tables, which have real images too, and puts them into the card of the first NAME:

- Fréchet distances by a small classifier, which saw half of the training images, and by principal
  components of pixels, both to images of the other half; precision and recall;
- the accuracy of a network trained to tell a set of images from the test images;
- distances to the nearest training image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import dsmooth
from dsmooth.data import SPLITS, load_dataset, to_bytes, to_float
from dsmooth.data.order import choose_images, indices_at
from dsmooth.evaluate.comparison import Reference, compare_images
from dsmooth.evaluate.features import extract_features, make_extractor
from dsmooth.evaluate.likelihood import standard_error
from dsmooth.machine import torch_seed
from dsmooth.pretrained import find
from dsmooth.progress import progress
from dsmooth.report.describe import packaged_card
from dsmooth.sampling.output import draw_parts, on_cpu
from dsmooth.sampling.request import Request
from dsmooth.sampling.two_step import draw
from dsmooth.tables import Table
from dsmooth.text import decimals, percent

from .card import save_card

SEEDS = range(3)  # of the networks, and of the halves of the training images
REFERENCE = 20_000  # training images to compare with, which a classifier did not see
TWO_SAMPLE = 3000, 1000  # images of each set to train on, and to test with
NEAREST = 1000
TEST, TRAIN = "test images", "other training images"


class Network(nn.Module):
    """Three convolutions with batch norm: x (B, C, H, W) -> features (B, 64), logits (B, K)."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, 16), (16, 32), (32, 64)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.SiLU(), nn.AvgPool2d(2)]
        last = nn.Linear(64 * (height // 8) * (width // 8), 64)
        self.body = nn.Sequential(*layers, nn.Flatten(), last, nn.SiLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def fit(images: Tensor, labels: Tensor, epochs: int, seed: int) -> Network:
    """A network trained on bytes (N, C, H, W), which move by up to a pixel, and labels (N,)."""
    n, batch = len(images), 100
    steps = epochs * n // batch
    with torch_seed(seed), progress("training a network", steps, "steps") as done:
        channels, height, width = images.shape[1:]
        network = Network(channels, height, width, int(labels.max()) + 1)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            rows = indices_at(n, step * batch, batch, seed)
            moved = images[rows].roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(to_float(moved))[1], labels[rows]).backward()
            optimizer.step()
            schedule.step()
            done(step + 1)
    return network


def principal_components(images: Tensor) -> nn.Module:
    """The projection of pixels onto the 64 leading principal components of bytes."""
    with torch_seed(0):
        directions = torch.pca_lowrank(to_float(images).flatten(1), 64, niter=4)[2]
    projection = nn.Linear(images[0].numel(), 64, bias=False)
    projection.weight.data = directions.T.contiguous()
    return nn.Sequential(nn.Flatten(), projection)


BY_PIXELS = {"by pixels": principal_components}


def thumbnails(images: Tensor) -> nn.Module:
    """The means of images in squares of 8 x 8 pixels."""
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten())


def distances(
    sets: Mapping[str, Tensor],
    train: Tensor,
    labels: Tensor,
    features: Mapping[str, Callable[[Tensor], nn.Module]] = BY_PIXELS,
) -> Table:
    """The sets against half of the training images, by features made from the other half.

    features: by column, a function of these images that makes a network; the columns follow those
    of a classifier. Features are scaled to a mean variance of 1. An error is of the images, by the
    bootstrap, and of the halves.
    """
    cells: dict[str, list[list[tuple[float, float]]]] = {}  # values and errors, a row for each seed
    for seed in SEEDS:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        half, others = order[: len(train) // 2], order[len(train) // 2 :]
        real, rest = train[others[:REFERENCE]], train[others[REFERENCE:]]
        judged = {**sets, TRAIN: rest[: len(sets[TEST])]}
        for name in judged:
            cells.setdefault(name, []).append([])
        classifier = fit(train[half], labels[half], 3, seed).body
        for module in (classifier, *(make(train[half]) for make in features.values())):
            extractor = make_extractor(module)
            reference = Reference.of_images(real, extractor)
            variance = float(reference.statistics.covariance.diagonal().mean())
            result = compare_images(judged, reference, progress=True)
            for name, distance in result.distances.items():
                row, scores = cells[name][-1], distance.scores
                row.append((distance.value / variance, distance.error / variance))
                if module is classifier and scores is not None:
                    row += [(scores.precision or 0.0, 0.0), (scores.recall or 0.0, 0.0)]

    def words(column: Sequence[tuple[float, float]]) -> str:
        values, errors = torch.tensor(column, dtype=torch.float64).T
        error = (values.var() + errors.square().mean()).sqrt()
        return decimals(float(values.mean()), 3, float(error))

    head = ["images", "n", "by a classifier", "precision", "recall", *features]
    rows = [
        [name, f"{len(judged[name]):,}", *map(words, zip(*rows, strict=True))]
        for name, rows in cells.items()
    ]
    return Table(head, rows)


def tell_apart(first: Tensor, second: Tensor, seed: int) -> float:
    """The share of other images of two sets that a network trained on some tells apart."""
    n_train, n_test = TWO_SAMPLE
    labels = torch.arange(2).repeat_interleave(n_train + n_test)
    is_known = torch.arange(n_train + n_test).repeat(2) < n_train
    images = torch.cat([first[: n_train + n_test], second[: n_train + n_test]])
    network = fit(images[is_known], labels[is_known], 12, seed)
    logits = extract_features(images[~is_known], make_extractor(network)).logits
    assert logits is not None
    return float((logits.argmax(1) == labels[~is_known]).double().mean())


def two_samples(sets: Mapping[str, Tensor]) -> Table:
    """How well networks tell sets from the test images; an error is of the images to test with."""
    rows = []
    for name, images in sets.items():
        if name != TEST:
            shares = torch.tensor([tell_apart(images, sets[TEST], seed) for seed in SEEDS])
            share, deviation = float(shares.mean()), float(shares.std())
            error = (share * (1 - share) / (2 * TWO_SAMPLE[1])) ** 0.5
            rows.append([name, percent(share, 1, error), percent(deviation)])
    return Table(["compared with test images", "accuracy", "deviation over seeds"], rows)


def nearest(sets: Mapping[str, Tensor], train: Tensor) -> Table:
    """Distances of images to the nearest training image, of pixels in 0 .. 1."""
    rows, others = [], train.flatten(1).float() / 255
    for name, images in sets.items():
        near = torch.cdist(images[:NEAREST].flatten(1).float() / 255, others).amin(1)
        ends = (decimals(float(near.quantile(q)), 2) for q in (0.01, 0.0))
        rows.append([name, decimals(float(near.mean()), 2, standard_error(near)), *ends])
    return Table(["nearest training image", "mean distance", "1 % quantile", "least"], rows)


def main(folder: str, count: str = "4000", *others: str) -> None:
    train, test = (load_dataset("mnist", split, folder) for split in SPLITS)
    sets, n = {}, int(count)
    names = others or ("mnist", "mnist-plain")
    for name in names:
        models = dsmooth.load(name)
        request = Request(n, seed=0, label="prior" if models.classes.number else None)
        with progress(f"drawing samples of {name}", n) as done:
            parts = draw_parts(partial(draw, models.model), request.parts(100), on_cpu, done)
            sets[f"samples of {name}"] = to_bytes(torch.cat([*parts]))
    sets[TEST] = choose_images(test, n)
    tables = (
        distances(sets, train.images, train.known_labels()),
        two_samples({**sets, TRAIN: choose_images(train, n)}),
        nearest(sets, train.images),
    )
    print("\n\n".join(table.markdown() for table in tables))
    save_card(find(names[0]), replace(packaged_card(names[0]), judges=tables))


if __name__ == "__main__":
    main(*sys.argv[1:])
