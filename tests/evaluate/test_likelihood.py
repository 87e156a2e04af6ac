"""Bits/dim and classes: conventions, Bayes' rule; the bound over the classes that matter."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.bound import likely_classes
from dsmooth.data import own_images
from dsmooth.evaluate.classes import classify
from dsmooth.evaluate.likelihood import (
    Scores,
    bits_per_dim,
    conventions,
    paired_difference,
    score_pair,
    score_plain,
)
from dsmooth.functional import logistic_mixture_log_prob
from dsmooth.nn.gradients import class_gradient
from dsmooth.philox import Stream
from dsmooth.pixels import Likelihood
from dsmooth.results import BYTE_BITS, BitsResult, MeasuredImages, bits_table
from dsmooth.text import decimals
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import CLASSES, GAUSSIAN, images, network, tiny_pair

pytestmark = pytest.mark.quick
DATA = random_dataset(2)
LABELLED = random_dataset(12, labels=(torch.arange(12) * 2 + 1) % CLASSES)


def sized(side: int, **settings: int) -> dsmooth.PixelCNNpp:
    """A network that was trained on images of side x side."""
    model = copy.deepcopy(network(**settings))
    model.image_size = side, side
    return model


def test_half_precision_scores_the_bytes_themselves() -> None:
    model, data = network(likelihood="discretized"), random_dataset(5)
    torch.nn.init.zeros_(model.head.weight_g)  # the parameters do not depend on pixels
    half = score_plain(model.bfloat16(), data).discretized
    assert torch.equal(half, score_plain(model.float(), data).discretized)


@pytest.mark.parametrize("likelihood", ["discretized", "continuous"])
def test_conventions_differ_by_exactly_their_constants(likelihood: str) -> None:
    """In batches, of which the last one is smaller; with the mixtures that the models have."""
    pair, data = tiny_pair(likelihood), random_dataset(5)
    if likelihood == "discretized":
        bytes_and_atoms = network("concat", likelihood=likelihood, atoms="all")
        networks = network(likelihood="gaussian", smoothing_scale=0.5), bytes_and_atoms
        pair = dsmooth.SmoothedPair(*networks, dsmooth.GaussianSmoothing(0.5), (8, 8))
    scores = score_pair(pair, data, n_noise=3, seed=3, batch_size=2)
    found = conventions(scores)
    assert pytest.approx(6.9943534, abs=1e-7) == BYTE_BITS
    assert found.per_byte.value - found.density.value == pytest.approx(BYTE_BITS, abs=1e-12)
    if likelihood == "discretized":
        assert found.per_byte.value == pytest.approx(found.discrete.value, abs=1e-12)
    assert (scores.continuous is None) == (likelihood == "discretized")
    assert found.importance_weighted.value < found.discrete.value
    assert found.mixture is None

    # The bounds are SmoothedPair.elbo's, in the likelihood that the denoiser has.
    x, log_2 = data.batch(torch.arange(5)), 64 * math.log(2)
    elbo = -pair.elbo(x, n_noise=3, seed=3).double() / log_2
    bound = bits_per_dim(scores)
    assert bound == (found.discrete if likelihood == "discretized" else found.density)
    assert bound.value == pytest.approx(float(elbo.mean()), abs=1e-6)
    assert bound.error == pytest.approx(float(elbo.std() / 5**0.5), abs=1e-6)
    terms = (getattr(scores.terms, name) for name in ("noisy", "smoothing", likelihood))
    assert sum(terms) == pytest.approx(bound.value)

    # The bounds of bytes are of its masses, whatever it was trained with.
    pair.denoiser.config = replace(pair.denoiser.config, likelihood="discretized")
    for number, weighted in ((found.discrete, False), (found.importance_weighted, True)):
        nats = pair.elbo(x, n_noise=3, seed=3, importance_weighted=weighted)
        bits = -nats.double() / log_2
        assert number.value == pytest.approx(float(bits.mean()), abs=1e-6)


def test_the_noise_of_the_target_is_independent_of_the_smoothing() -> None:
    """It changes only the density."""
    seen: list[Tensor] = []
    pair, data = tiny_pair("continuous"), random_dataset(50)
    clean = score_pair(pair, data)
    forward = pair.denoiser.given_vector
    pair.denoiser.given_vector = lambda *inputs: seen.extend(inputs[:2]) or forward(*inputs)
    noised = score_pair(pair, data, clean_noise=0.01)
    assert torch.equal(clean.discretized, noised.discretized)
    assert not torch.equal(clean.continuous, noised.continuous)
    x, x_tilde, target = seen[:3]
    both = torch.stack([(x_tilde - x).flatten(), (target - x).flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / x.numel() ** 0.5
    # Each draw has noise of its own, on the target too.
    noise = dsmooth.GaussianSmoothing(0.01, Stream.CLEAN_NOISE)
    seen.clear()
    score_pair(pair, data, clean_noise=0.01, n_noise=2)
    clean_target, targets = seen[0], seen[2::4]
    for repeat, target in enumerate(targets):
        expected = noise.sample(clean_target, seed=0, first_index=0, repeat=repeat)
        assert torch.equal(target, expected)


def test_a_paired_difference_has_the_error_of_the_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = 100 * torch.randn(1, 50, generator=generator).double()  # what both models find hard
    one = Scores(hard + torch.randn(3, 50, generator=generator), dimensions=16)
    other = Scores(hard + 2, dimensions=16)
    found = paired_difference(one, other)
    bits = (2 - (one.discretized - hard).mean(0)) / (16 * math.log(2))
    assert found.value == pytest.approx(float(bits.mean()), rel=1e-9)
    assert found.error == pytest.approx(float(bits.std()) / 50**0.5, rel=1e-9)
    given = replace(other, classes="given")
    assert paired_difference(one, given) is None  # one of them is given bits of the image
    assert paired_difference(replace(one, classes="given"), given) == found
    assert paired_difference(replace(one, classes="hidden"), other) == found


def test_the_error_over_repeats_needs_enough_of_them() -> None:
    few, enough = (score_pair(tiny_pair(), random_dataset(2), n_noise=n) for n in (9, 10))
    assert conventions(few).discrete.over_draws is None
    assert conventions(score_pair(tiny_pair(), random_dataset(1))).discrete.error is None
    repeats = enough.bits(enough.log_weights("discretized")).mean(1)
    expected = float(repeats.std()) / 10**0.5
    assert conventions(enough).discrete.over_draws == pytest.approx(expected)
    models = {"pair": enough.summary(), "plain": few.summary()}
    table = bits_table(BitsResult(MeasuredImages("mnist", "test", 2), 0, models))
    assert "± repeats" in table.head  # also where one model has none


@pytest.mark.parametrize("likelihood", ["discretized", "continuous"])
def test_a_plain_model_is_scored_exactly(likelihood: Likelihood) -> None:
    """And of bytes with the images' labels."""
    atoms, n_classes = ("all", CLASSES) if likelihood == "discretized" else ((), 0)
    model = network(likelihood=likelihood, atoms=atoms, n_classes=n_classes)
    data = LABELLED.part(slice(5))
    x, label = data.batch(torch.arange(5)), data.labels if n_classes else None
    with torch.no_grad():
        log_p = model.log_prob(x, label=label)
        pixels = logistic_mixture_log_prob(x, model(x, None, label), likelihood, atoms=atoms)
    scores = score_plain(model, data)
    # Sums are not rounded to float32.
    assert torch.equal(getattr(scores, likelihood)[0], pixels.double().sum((1, 2)))
    in_batches = score_plain(model, data, batch_size=2)
    exact, numbers = bits_per_dim(in_batches), conventions(in_batches)
    assert exact == (numbers.discrete if likelihood == "discretized" else numbers.density)
    assert exact.value == pytest.approx(-float(log_p.mean()) / (64 * math.log(2)), rel=1e-6)


PAIR = tiny_pair()


@pytest.mark.parametrize(
    ("call", "model", "data", "words"),
    [
        (partial(score_pair, n_noise=0), PAIR, DATA, "`n_noise` must be at least 1, got 0"),
        (score_pair, PAIR, DATA.part(slice(0)), "`images` must be at least 1, got 0"),
        (partial(score_pair, batch_size=0), PAIR, DATA, "`batch_size` must be at least 1, got 0"),
        (partial(score_pair, clean_noise=-1), PAIR, DATA, "scale must be positive and finite, got"),
        (score_pair, PAIR, random_dataset(2, 12), r"\(1, 8, 8\), got noise of \(1, 12, 12\): 2 im"),
        (score_plain, network("concat"), DATA, 'a plain model must have conditioning="none"'),
        (score_plain, network(**GAUSSIAN), DATA, "and no gaussian noise in its likelihood"),
        (score_plain, sized(12), DATA, r"the model is for images .* \(1, 12, 12\), got noise of"),
        (classify, sized(12, n_classes=3), LABELLED, r"images .* \(1, 12, 12\), got noise of"),
        (classify, network(n_classes=0), LABELLED, "only a model with classes classifies"),
        (classify, network("concat", n_classes=3), LABELLED, "context is missing"),
        (classify, network(n_classes=2), LABELLED, "images of class 2, which is none of"),
    ],
)
def test_what_cannot_be_scored_or_classified_is_named(call, model, data, words: str) -> None:
    refuses(words, call, model, data, error=(TypeError, ValueError))


def test_the_table_says_what_each_number_is_of() -> None:
    """By its name, its star if it compares with the literature, and whether the class was given."""
    plain, pair = network(n_classes=CLASSES), tiny_pair(classes=(CLASSES, CLASSES))
    scores = {
        "plain": score_plain(plain, LABELLED),
        "pair": score_pair(pair, LABELLED, n_noise=2, mixture=True),
    }
    models = {name: found.summary() for name, found in scores.items()}
    rows = bits_table(BitsResult(MeasuredImages("digits", "test", len(LABELLED)), 0, models)).rows
    words = [row[0].split("\n") for row in rows]
    assert [name for name, _ in words] == [
        "plain: discrete *",
        "plain: density",
        f"plain: density + {BYTE_BITS:.3f}",
        "pair: discrete bound *",
        "pair: discrete bound, importance-weighted, n = 2 *",
        "pair: discrete bound, mixture of classes *",
        "pair: density",
        f"pair: density + {BYTE_BITS:.3f}",
    ]
    exact, found = models["plain"].numbers, models["pair"].numbers
    numbers = [exact.discrete, exact.density, exact.per_byte, found.discrete]
    numbers += [found.importance_weighted, found.mixture, found.density, found.per_byte]
    assert [row[1] for row in rows] == [decimals(number.value) for number in numbers]
    meanings = dict(words)
    for model, density in (
        ("plain: discrete *", "plain: density"),
        ("pair: discrete bound *", "pair: density"),
    ):
        assert "P(bytes | class)" in meanings[model]
        is_density = scores[model.partition(":")[0]].continuous is not None
        assert ("given the class" in meanings[density]) == is_density


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, (CLASSES, CLASSES), (CLASSES, 0), (0, CLASSES)])
def test_images_are_classified_by_their_likelihoods(classes: tuple[int, int] | None) -> None:
    """By those of a plain model, or by the bounds of a pair."""
    data = LABELLED.part(slice(5))
    if classes is None:
        model = network(likelihood="discretized", n_classes=CLASSES)
        log_likelihood = model.log_prob
    else:
        model = tiny_pair(classes=classes)
        log_likelihood = partial(model.elbo, n_noise=2, importance_weighted=True, seed=4)
    result = classify(model, data, n_noise=2, seed=4, batch_size=3)
    x = data.batch(torch.arange(5))
    rows = [log_likelihood(x, label=torch.full((5,), label)) for label in range(CLASSES)]
    nats = torch.stack(rows, 1)
    torch.testing.assert_close(result.log_likelihoods.float(), nats)
    right = nats.argmax(1) == data.labels
    assert result.accuracy == pytest.approx(float(right.double().mean()))
    assert result.error == pytest.approx(float(right.double().std()) / 5**0.5)
    given = nats[torch.arange(5), data.labels].mean() / (64 * math.log(2))
    assert result.bits_given_class == pytest.approx(-float(given), rel=1e-6)
    mixture = (nats.logsumexp(1) - math.log(CLASSES)).mean() / (64 * math.log(2))
    assert result.bits_of_mixture == pytest.approx(-float(mixture), rel=1e-6)


MANY, X = 8, images(3)
ALL = torch.arange(MANY)[:, None].expand(-1, len(X))  # each class, of all images
KINDS = [(MANY, 0), (0, MANY), (MANY, MANY)]


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
    return likely_classes(pair.bound(count), x, pair.smoothing.sample(x, seed=0))


@pytest.mark.grid
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("classes", KINDS)
def test_a_sum_over_fewer_classes_is_lower(classes: tuple[int, int], seed: int) -> None:
    pair = random_pair(classes, seed)
    nats = torch.stack([pair.elbo(X, label=label) for label in ALL])
    whole = nats.logsumexp(0) - math.log(MANY)
    torch.testing.assert_close(pair.elbo(X, top_classes=None), whole)
    previous = torch.full((len(X),), -torch.inf)
    for count in (1, 3, MANY):
        chosen = chosen_classes(pair, X, count)
        bound = pair.elbo(X, top_classes=count)
        terms = nats.gather(0, chosen)
        torch.testing.assert_close(bound, terms.logsumexp(0) - math.log(MANY))
        assert (bound >= previous - 1e-4).all()
        assert (bound <= whole + 1e-4).all()
        assert (chosen.sort(0).values.diff(dim=0) > 0).all()  # no class twice
        previous = bound
    torch.testing.assert_close(bound, whole)


def test_the_classes_that_matter_are_chosen() -> None:
    """Where the label moves log p(x~) by little, the derivative ranks the classes exactly."""
    pair = random_pair((MANY, 0), 0)
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
    pair = random_pair((MANY, 0), 0)
    shares = torch.rand(MANY, generator=torch.Generator().manual_seed(0)).double()
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
    few = chosen_classes(pair, X, MANY - 2)  # all take no longer
    assert torch.equal(few, torch.arange(MANY)[:, None].expand(-1, len(X)))


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
    forward = pair.denoiser.given_vector
    pair.denoiser.given_vector = lambda *inputs: sizes.add(len(inputs[0])) or forward(*inputs)
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
    pair = random_pair((MANY, MANY), 1)
    labels = torch.arange(len(X))
    data = own_images(dsmooth.to_bytes(X), labels=labels)
    scores = score_pair(pair, data, mixture=True)
    torch.testing.assert_close(scores.mixture[0].float(), pair.elbo(X))
    assert scores.classes == "given"
