"""Linear classifiers of features: they reach what is separable, and nothing else."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.adam import adam

from dsmooth.data import epoch_order
from dsmooth.evaluate.linear import moments, train_linear


def labelled(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """Points with a margin of 4 standard deviations between classes, on wild scales."""
    generator = np.random.default_rng(1)
    centres = np.linalg.qr(generator.normal(size=(d, classes)))[0].T * 8
    scale, offset = 10.0 ** generator.uniform(-1, 1, d), generator.normal(size=d) * 3
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    points = centres[labels] + generator.normal(size=(n, d)) * min(1.0, 4 / d**0.5)
    return ((points * scale + offset).astype(np.float16), torch.from_numpy(labels))


@pytest.mark.quick
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 2, 2), (1000, 40, 10), (40, 500, 4)])
def test_what_is_linearly_separable_is_reached(n: int, d: int, classes: int) -> None:
    result = train_linear(
        labelled(n, d, classes, 2), labelled(500, d, classes, 3), classes, epochs=20
    )
    assert result["accuracy"] == 1
    assert result["train_accuracy"] == 1
    assert result["features"] == d


def test_each_gradient_is_that_of_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come in another order in each epoch, at a rate that falls to almost 0."""
    features, labels = labelled(52, 7, 3, 2)  # ten steps of five images, and one of two
    seen: list[tuple[Tensor, ...]] = []
    rates: list[float] = []

    def step(parameters: list[Tensor], gradients: list[Tensor], *state: Any, **how: Any) -> None:
        rates.append(how["lr"])
        halves = [t.clone().split([7, 1], dim=1) for t in (*parameters, *gradients)]
        seen.append(tuple(part.squeeze(1) for pair in zip(*halves, strict=True) for part in pair))
        adam(parameters, gradients, *state, **how)

    monkeypatch.setattr("dsmooth.evaluate.linear.adam", step)
    data = features, labels
    train_linear(data, data, 3, epochs=2, seed=4)
    falling = [3 / 7 * (1 + math.cos(math.pi * step / 22)) / 2 for step in range(22)]
    assert rates == pytest.approx(falling)
    mean, scale = moments(features, "cpu")
    steps = itertools.product(range(2), range(0, 52, 5))
    for (epoch, first), (weight, of_weight, bias, of_bias) in zip(steps, seen, strict=True):
        rows = epoch_order(52, epoch, 4)[first : first + 5].sort().values
        z = (torch.from_numpy(features[rows.numpy()]).float() - mean) * scale
        leaves = weight.requires_grad_(), bias.requires_grad_()
        logits = torch.nn.functional.linear(z, *leaves)
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        for got, expected in zip(
            (of_weight, of_bias), torch.autograd.grad(loss, leaves), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_labels_that_have_nothing_to_do_with_the_features_are_not_told() -> None:
    n, classes = 1000, 4
    (train, labels), (test, _) = labelled(n, 6, classes, 2), labelled(n, 6, classes, 3)
    wrong = torch.from_numpy(np.random.default_rng(4).integers(0, classes, n))
    result = train_linear((train, labels), (test, wrong), classes, epochs=2)
    assert abs(result["accuracy"] - 1 / classes) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert result["standard_error"] == pytest.approx(
        (result["accuracy"] * (1 - result["accuracy"]) / n) ** 0.5
    )


def test_features_that_never_vary_change_nothing() -> None:
    both = labelled(200, 6, 3, 2), labelled(200, 6, 3, 3)
    train, test = ((np.concatenate([x, np.full_like(x, 7)], 1), y) for x, y in both)
    assert train_linear(train, test, 3, epochs=10)["accuracy"] == 1
    assert all(values.isfinite().all() for values in moments(train[0], "cpu"))


def test_moments_are_those_of_the_features() -> None:
    features = labelled(333, 5, 3, 2)[0]
    exact = features.astype(np.float64)
    variance = exact.var(0)
    mean, scale = moments(features, "cpu")
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale.numpy(), (variance + variance.mean()) ** -0.5, rtol=1e-6)
