"""Bits/dim: conventions differ by their constants, bounds bound, batches change nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.evaluate.likelihood import (
    BYTE_BITS,
    Scores,
    bits_per_dim,
    conventions,
    paired_difference,
    score_pair,
    score_plain,
)
from dsmooth.functional import logistic_mixture_log_prob
from dsmooth.likelihoods import Likelihood
from dsmooth.machine import torch_threads
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import network, tiny_config, tiny_pair

pytestmark = pytest.mark.quick


def test_half_precision_scores_the_bytes_themselves() -> None:
    model, data = network(likelihood="discretized"), random_dataset(5)
    torch.nn.init.zeros_(model.head.weight_g)  # the parameters do not depend on pixels
    half = score_plain(model.bfloat16(), data).discretized
    assert torch.equal(half, score_plain(model.float(), data).discretized)


@pytest.mark.parametrize("likelihood", ["discretized", "continuous"])
def test_conventions_differ_by_exactly_their_constants(likelihood: str) -> None:
    pair = tiny_pair(likelihood)
    data = random_dataset(5)
    scores = score_pair(pair, data, n_noise=3)
    rows = {row.name: row for row in conventions(scores)}
    names = ["discrete bound", "discrete bound, importance-weighted, n = 3"]
    names += ["density", f"density + {BYTE_BITS:.3f}"]
    assert list(rows) == names
    assert [row.comparable for row in rows.values()] == [True, True, False, False]
    assert pytest.approx(6.9943534, abs=1e-7) == BYTE_BITS
    assert rows[names[3]].value - rows[names[2]].value == pytest.approx(BYTE_BITS, abs=1e-12)
    if likelihood == "discretized":
        assert rows[names[3]].value == pytest.approx(rows[names[0]].value, abs=1e-12)
    assert (scores.continuous is None) == (likelihood == "discretized")
    assert rows[names[1]].value < rows[names[0]].value

    # The bounds are SmoothedPair.elbo's, in the likelihood that the denoiser has.
    x, log_2 = data.batch(torch.arange(5)), 64 * math.log(2)
    elbo = -pair.elbo(x, n_noise=3).double() / log_2
    own = names[0] if likelihood == "discretized" else names[2]
    assert rows[own].value == pytest.approx(float(elbo.mean()), abs=1e-6)
    assert rows[own].standard_error == pytest.approx(float(elbo.std() / 5**0.5), abs=1e-6)
    bound = bits_per_dim(scores)
    assert bound.value == pytest.approx(rows[own].value, abs=1e-12)
    terms = [bound.terms[name] for name in ("noisy", "smoothing", bound.likelihood)]
    assert sum(terms) == pytest.approx(bound.value)

    # The bounds of bytes are of its masses, whatever it was trained with.
    pair.denoiser.config = replace(pair.denoiser.config, likelihood="discretized")
    for name, weighted in zip(names, (False, True), strict=False):
        bits = -pair.elbo(x, n_noise=3, importance_weighted=weighted).double() / log_2
        assert rows[name].value == pytest.approx(float(bits.mean()), abs=1e-6)


def test_the_noise_of_the_target_is_independent_of_the_smoothing() -> None:
    """And changes the density alone."""
    seen: list[Tensor] = []
    pair, data = tiny_pair("continuous"), random_dataset(50)
    clean = score_pair(pair, data)
    pair.denoiser.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[:2]))
    noised = score_pair(pair, data, clean_noise=0.01)
    assert torch.equal(clean.discretized, noised.discretized)
    assert not torch.equal(clean.continuous, noised.continuous)
    x, x_tilde, target = seen[:3]
    both = torch.stack([(x_tilde - x).flatten(), (target - x).flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / x.numel() ** 0.5


def test_a_paired_difference_has_the_error_of_the_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = 100 * torch.randn(1, 50, generator=generator).double()  # what both models find hard
    one = Scores(hard + torch.randn(3, 50, generator=generator), dimensions=16)
    other = Scores(hard + 2, dimensions=16)
    found = paired_difference(one, other)
    bits = (2 - (one.discretized - hard).mean(0)) / (16 * math.log(2))
    assert found["value"] == pytest.approx(float(bits.mean()), rel=1e-9)
    assert found["standard_error"] == pytest.approx(float(bits.std()) / 50**0.5, rel=1e-9)


def test_the_error_over_repeats_needs_enough_of_them() -> None:
    few, enough = (score_pair(tiny_pair(), random_dataset(2), n_noise=n) for n in (9, 10))
    assert conventions(few)[0].repeat_error is None
    assert conventions(score_pair(tiny_pair(), random_dataset(1)))[0].standard_error is None
    repeats = enough.bits(enough.log_weights("discretized")).mean(1)
    expected = float(repeats.std()) / 10**0.5
    assert conventions(enough)[0].repeat_error == pytest.approx(expected)


class LinearGaussian(dsmooth.PixelCNNpp):
    """x ~ N(0, I), x~ = x + scale n: log p(x~), or log p(x | x~) with the posterior mean moved."""

    def __init__(self, conditioning: str, scale: float, shift: float = 0.0) -> None:
        super().__init__(tiny_config(conditioning, "continuous"))
        self.variance, self.shift = scale**2, shift

    def log_prob(self, x: Tensor, context: Tensor | None = None, label: object = None) -> Tensor:
        if context is None:
            mean, variance = torch.zeros_like(x), 1 + self.variance
        else:
            mean = context / (1 + self.variance) + self.shift
            variance = self.variance / (1 + self.variance)
        terms = -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
        return terms.flatten(1).sum(1)


def test_the_bound_is_tight_for_the_true_posterior_and_loose_by_the_divergence() -> None:
    scale, shift = 0.5, 0.3
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.clamp(-1, 1)
    exact = -0.5 * (x**2 + math.log(2 * math.pi)).flatten(1).sum(1)

    def pair(shift: float) -> dsmooth.SmoothedPair:
        noisy, denoiser = LinearGaussian("none", scale), LinearGaussian("concat", scale, shift)
        return dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(scale), (8, 8))

    # Every single draw of noise gives log p(x): the weights have no variance.
    torch.testing.assert_close(pair(0).elbo(x), exact)
    torch.testing.assert_close(pair(0).elbo(x, n_noise=3, importance_weighted=True), exact)
    draws = pair(shift).elbo(x, n_noise=400)
    variance = scale**2 / (1 + scale**2)
    divergence = 64 * 0.5 * shift**2 / variance
    # E over x~ of the cross term is shift * (x - E[mean]), zero only on average over p(x).
    mean_error = x.flatten(1).sum(1) * (1 - 1 / (1 + scale**2)) * shift / variance
    deviation = (64 * (shift / variance * scale / (1 + scale**2)) ** 2 / 400) ** 0.5
    assert (draws - (exact - divergence + mean_error)).abs().max() < 4.5 * deviation
    assert (exact - draws - mean_error > 0.5 * divergence).all()
    tighter = pair(shift).elbo(x, n_noise=400, importance_weighted=True)
    assert (tighter > draws).all()


def test_batches_change_nothing_and_the_last_one_counts() -> None:
    pair, data = tiny_pair(), random_dataset(7)
    whole = score_pair(pair, data, n_noise=2, seed=3)
    assert whole.n_images == 7
    for batch_size in (1, 3, 100):
        parts = score_pair(pair, data, n_noise=2, seed=3, batch_size=batch_size)
        torch.testing.assert_close(
            parts.log_weights("discretized"), whole.log_weights("discretized"), rtol=2e-6, atol=0
        )
    expected = whole.log_weights("continuous")[:, :5]
    for batch_size in (2, 100):  # the last batch has one of two, and all
        limited = score_pair(
            pair, random_dataset(7), n_noise=2, seed=3, limit=5, batch_size=batch_size
        )
        torch.testing.assert_close(limited.log_weights("continuous"), expected, rtol=2e-6, atol=0)
    other = score_pair(pair, data, n_noise=2, seed=4)
    assert not torch.allclose(other.noisy, whole.noisy)


@pytest.mark.parametrize("likelihood", ["discretized", "continuous"])
def test_a_plain_model_is_scored_exactly(likelihood: Likelihood) -> None:
    model = network(likelihood=likelihood)
    scores = score_plain(model, random_dataset(5), batch_size=2)
    own = "discrete" if likelihood == "discretized" else "density"
    x = random_dataset(5).batch(torch.arange(5))
    with torch.no_grad():
        log_p, pixels = model.log_prob(x), logistic_mixture_log_prob(x, model(x), likelihood)
    sums = getattr(score_plain(model, random_dataset(5)), likelihood)[0]
    assert torch.equal(sums, pixels.double().sum((1, 2)))  # of no rounding to float32
    expected = -float(log_p.mean()) / (64 * math.log(2))
    rows = {row.name: row for row in conventions(scores)}
    assert rows[own].value == pytest.approx(expected, rel=1e-6)
    exact = bits_per_dim(scores)
    assert exact.value == exact.terms[likelihood] == rows[own].value


def test_what_cannot_be_scored_is_named() -> None:
    pair, data = tiny_pair(), random_dataset(2)
    for images, options, message in (
        (data, {"n_noise": 0}, "`n_noise` must be at least 1, got 0"),
        (data, {"limit": 0}, "`limit` must be at least 1, got 0"),
        (data, {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        (data, {"clean_noise": -1}, "scale must be positive and finite, got -1"),
        (random_dataset(2, 12), {}, r"\(1, 8, 8\), got noise of \(1, 12, 12\): 2 images"),
        (random_dataset(2, channels=3), {}, r"got noise of \(3, 8, 8\)"),
    ):
        refuses(message, score_pair, pair, images, **options)
    refuses('a plain model must have conditioning="none"', score_plain, pair.denoiser, data)
    with pytest.raises(ValueError, match=r'and no gaussian noise in its likelihood, got .*"gauss'):
        score_plain(network(likelihood="gaussian", smoothing_scale=0.5), data)
    for score, model in ((score_pair, pair), (score_plain, pair.noisy)):
        with pytest.raises(TypeError, match=r"got a Tensor: dsmooth\.data\.own_images\(images\)"):
            score(model, data.images)


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    """Batches are scored side by side, in the contexts of the caller."""
    pair, data, seen = tiny_pair(), random_dataset(9), []
    for threads in (1, 3):
        with torch_threads(threads), torch.autocast("cpu", torch.bfloat16):
            seen.append(score_pair(pair, data, batch_size=2).discretized)
            assert torch.get_num_threads() == threads
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], score_pair(pair, data, batch_size=2).discretized)
