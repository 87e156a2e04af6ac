"""The bound of a pair with classes: a sum over the classes that matter is below the whole sum."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.bound import likely_classes
from dsmooth.data import own_images
from dsmooth.evaluate import score_pair
from dsmooth.nn.gradients import class_gradient
from tests.helpers.networks import images, tiny_pair

pytestmark = pytest.mark.quick
CLASSES, X = 8, images(3)
ALL = torch.arange(CLASSES)[:, None].expand(-1, len(X))  # each class, of all images
KINDS = [(CLASSES, 0), (0, CLASSES), (CLASSES, CLASSES)]


def random_pair(classes: tuple[int, int], seed: int) -> dsmooth.SmoothedPair:
    """A pair whose classes differ by nats or by hundreds of them."""
    pair = tiny_pair(classes=classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in pair.named_parameters():
            if name.endswith("condition_weight"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 * 3**seed)
    return pair


def chosen_classes(pair: dsmooth.SmoothedPair, x: Tensor, count: int) -> Tensor:
    models, x_tilde = (pair.noisy, pair.denoiser), pair.smoothing.sample(x, seed=0)
    return likely_classes(models, x, x_tilde, pair.log_prior, count)


@pytest.mark.grid
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("classes", KINDS)
def test_a_sum_over_fewer_classes_is_lower(classes: tuple[int, int], seed: int) -> None:
    pair = random_pair(classes, seed)
    nats = torch.stack([pair.elbo(X, label=label) for label in ALL])
    whole = nats.logsumexp(0) - math.log(CLASSES)
    torch.testing.assert_close(pair.elbo(X, top_classes=None), whole)
    previous = torch.full((len(X),), -torch.inf)
    for count in (1, 3, CLASSES):
        chosen = chosen_classes(pair, X, count)
        bound = pair.elbo(X, top_classes=count)
        terms = nats.gather(0, chosen)
        torch.testing.assert_close(bound, terms.logsumexp(0) - math.log(CLASSES))
        assert (bound >= previous - 1e-4).all()
        assert (bound <= whole + 1e-4).all()
        assert (chosen.sort(0).values.diff(dim=0) > 0).all()  # no class twice
        previous = bound
    torch.testing.assert_close(bound, whole)


def test_the_classes_that_matter_are_chosen() -> None:
    """Where the label moves log p(x~) by little, the derivative ranks the classes exactly."""
    pair = random_pair((CLASSES, 0), 0)
    with torch.no_grad():
        for name, weight in pair.named_parameters():
            weight.mul_(1e-5 if name.endswith("condition_weight") else 1)
    pair = pair.double()
    x = X.double()
    x_tilde = pair.smoothing.sample(x, seed=0)
    nats = torch.stack([pair.noisy.log_prob(x_tilde, label=label) for label in ALL])
    assert torch.equal(chosen_classes(pair, x, 3), nats.topk(3, 0).indices)


def test_the_prior_counts_in_choosing_classes() -> None:
    """Where the label moves nothing it alone decides; the derivative is taken at its mean."""
    pair = random_pair((CLASSES, 0), 0)
    shares = torch.rand(CLASSES, generator=torch.Generator().manual_seed(0)).double()
    shares /= shares.sum()
    classes = replace(pair.classes, shares=tuple(shares.tolist()))
    pair.noisy.config = replace(pair.noisy.config, classes=classes)
    for name, weight in pair.named_parameters():
        weight.data.mul_(0 if name.endswith("condition_weight") else 1)
    with patch("dsmooth.bound.class_gradient", wraps=class_gradient) as gradient:
        chosen = chosen_classes(pair, X, 3)
    assert torch.equal(chosen, shares.topk(3).indices[:, None].expand(-1, len(X)))
    at = gradient.call_args.args[1]
    torch.testing.assert_close(at, shares.float().expand(len(X), -1))
    few = chosen_classes(pair, X, CLASSES - 2)  # all take no longer
    assert torch.equal(few, torch.arange(CLASSES)[:, None].expand(-1, len(X)))


@pytest.mark.parametrize(("top_classes", "passes"), [({}, 4), ({"top_classes": None}, 30)])
def test_how_many_passes_a_bound_takes(top_classes: dict[str, None], passes: int) -> None:
    """Three classes of 30, and the pass that chooses them, which also computes a gradient."""
    pair, seen = tiny_pair(classes=(30, 0)), []
    forward = dsmooth.PixelCNNpp.given_vector

    def counted(model: dsmooth.PixelCNNpp, x: Tensor, *rest: object) -> Tensor:
        seen.append((model.config.n_classes, len(x)))
        return forward(model, x, *rest)

    with patch.object(dsmooth.PixelCNNpp, "given_vector", counted):
        pair.elbo(images(2), **top_classes)
    assert sorted(seen) == [(0, 2)] + [(30, 2)] * passes


def test_images_are_divided() -> None:
    """So memory does not grow with their number; each has the noise and label of its own row."""
    pair, x, sizes = tiny_pair(classes=(3, 3)), images(66), set()
    label = torch.arange(66) % 3
    expected = pair(x, label=label, n_noise=2, seed=5, first_index=7)
    pair.denoiser.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    bound = pair.elbo(x, label=label, n_noise=2, seed=5, first_index=7)
    torch.testing.assert_close(bound, expected)
    assert sizes == {64, 2}
    assert pair.elbo(x[:0]).shape == (0,)


@pytest.mark.parametrize("classes", KINDS)
def test_the_gradients_are_of_the_chosen_classes(classes: tuple[int, int]) -> None:
    pair, x = random_pair(classes, 1).double(), X.double()
    weights = [pair(x, label=label, seed=0) for label in chosen_classes(pair, x, 3)]
    expected = torch.autograd.grad(torch.stack(weights).logsumexp(0).sum(), [*pair.parameters()])
    found = torch.autograd.grad(pair(x, seed=0).sum(), [*pair.parameters()])
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(pair.elbo(x), pair(x, seed=0).detach())


def test_measures_have_the_mixture_that_draws() -> None:
    pair = random_pair((CLASSES, CLASSES), 1)
    labels = torch.arange(len(X))
    data = own_images(dsmooth.to_bytes(X), labels=labels)
    scores = score_pair(pair, data, mixture=True)
    torch.testing.assert_close(scores.mixture[0].float(), pair.elbo(X))
    assert scores.classes == "given"
