"""Samples of MNIST judged by networks and features that no setting of the models was chosen with.

    python -m tools.judge MNIST [NAME]

MNIST is the folder of the full data. 4,000 samples of the packaged pair NAME, of random classes,
are compared with real images, and the two tables are put into its card.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

import dsmooth
from dsmooth.data import SPLITS, load_dataset, to_bytes, to_float
from dsmooth.data.order import choose_images, indices_at
from dsmooth.evaluate.comparison import Reference, compare_images
from dsmooth.evaluate.features import make_extractor
from dsmooth.machine import torch_seed
from dsmooth.pretrained import find
from dsmooth.text import Table, decimals, percent

from .card import packaged_card, save_card

SEEDS = range(3)  # of the networks, and of the halves of the training images
COUNT, REFERENCE = 4000, 20_000  # samples; training images that no features were made from
N_TRAIN, N_TEST = 3000, 1000  # images of each set to tell apart
TEST, TRAIN = "test images", "other training images"


def fit(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """(features, classifier), trained on bytes (N, C, H, W), moved by up to a pixel, and labels."""
    n, batch, layers = len(images), 100, list[nn.Module]()
    with torch_seed(seed):
        for a, b in ((images.shape[1], 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.SiLU(), nn.AvgPool2d(2)]
        layers += [nn.Flatten(), nn.LazyLinear(64), nn.SiLU()]
        head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, int(labels.max()) + 1))
        network = nn.Sequential(nn.Sequential(*layers), head)
        network(to_float(images[:2]))
        optimizer, steps = torch.optim.Adam(network.parameters(), 2e-3), epochs * n // batch
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            rows = indices_at(n, step * batch, batch, seed)
            moved = images[rows].roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(to_float(moved)), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def principal_components(images: Tensor) -> nn.Module:
    """The projection of pixels onto the 64 leading principal components of bytes."""
    with torch_seed(0):
        directions = torch.pca_lowrank(to_float(images).flatten(1), 64, niter=4)[2]
    projection = nn.Linear(len(directions), 64, bias=False)
    projection.weight.data = directions.T.contiguous()
    return nn.Sequential(nn.Flatten(), projection)


def distances(sets: Mapping[str, Tensor], train: Tensor, labels: Tensor) -> Table:
    """The sets against half of the training images, by features made from the other half and scaled
    to a mean variance of 1; errors are of the images, by the bootstrap, and of the halves."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for seed in SEEDS:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        half, others = order[: len(train) // 2], order[len(train) // 2 :]
        judged = {**sets, TRAIN: train[others[REFERENCE:]][: len(sets[TEST])]}
        networks = fit(train[half], labels[half], 3, seed)[0], principal_components(train[half])
        for column, network in enumerate(networks):
            reference = Reference.of(train[others[:REFERENCE]], make_extractor(network))
            variance = float(reference.statistics.covariance.diagonal().mean())
            for name, one in compare_images(judged, reference).distances.items():
                pair = one.value / variance, one.error / variance
                found.setdefault((name, column), []).append(pair)

    def cell(name: str, column: int) -> str:
        values, errors = torch.tensor(found[name, column], dtype=torch.float64).T
        error = (values.var() + errors.square().mean()).sqrt()
        return decimals(float(values.mean()), 3, float(error))

    rows = [[name, f"{len(x):,}", cell(name, 0), cell(name, 1)] for name, x in judged.items()]
    return Table(["images", "n", "by a classifier", "by pixels"], rows)


def two_samples(sets: Mapping[str, Tensor], test: Tensor) -> Table:
    """How well networks tell sets from the test images."""
    rows, n = [], N_TRAIN + N_TEST
    known, labels = torch.arange(2 * n) % n < N_TRAIN, torch.arange(2).repeat_interleave(n)
    for name, x in sets.items():
        images = torch.cat([x[:n], test[:n]])
        networks = (fit(images[known], labels[known], 12, seed) for seed in SEEDS)
        right = [net(to_float(images[~known])).argmax(1) == labels[~known] for net in networks]
        shares = torch.stack(right).double().mean(1)
        error = float(shares.mean() * (1 - shares.mean()) / (2 * N_TEST)) ** 0.5
        rows.append([name, percent(float(shares.mean()), 1, error), percent(float(shares.std()))])
    return Table(["compared with test images", "accuracy", "deviation over seeds"], rows)


def main(folder: str, name: str = "mnist") -> None:
    train, test = (load_dataset("mnist", split, folder) for split in SPLITS)
    pair, real = dsmooth.SmoothedPair.from_pretrained(name), choose_images(test, COUNT)
    parts = [pair.sample(100, seed=0, first_index=first) for first in range(0, COUNT, 100)]
    drawn = {f"samples of {name}": to_bytes(torch.cat(parts))}
    tables = (
        distances({**drawn, TEST: real}, train.images, train.known_labels()),
        two_samples({**drawn, TRAIN: choose_images(train, COUNT)}, real),
    )
    save_card(find(name), replace(packaged_card(name), judges=tables))


if __name__ == "__main__":
    main(*sys.argv[1:])
