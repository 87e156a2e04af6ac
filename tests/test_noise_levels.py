"""Models of several noise levels: one vector more, one level at a time, and a ladder of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.evaluate.likelihood import score_pair
from dsmooth.models import Models
from dsmooth.nn.weights import at_level
from dsmooth.philox import Stream, image_words
from dsmooth.sampling.ladder import log_prob_of_noisy, seed_of_rung, step_down
from dsmooth.sampling.output import gather
from dsmooth.sampling.request import Execution, Request, known_pixels
from dsmooth.smoothing import GaussianSmoothing
from dsmooth.training.step import make_inputs
from tests.helpers.data_makers import random_dataset
from tests.helpers.networks import images, network, tiny_pair
from tests.helpers.tiny_runs import tiny

LEVELS = (0.1, 0.25, 0.5)


@pytest.mark.parametrize("n_classes", [0, 3])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_a_level_that_is_fixed_is_that_level(conditioning: str, n_classes: int) -> None:
    model = network(conditioning, n_classes=n_classes, noise_levels=LEVELS)
    x = images()
    context = None if conditioning == "none" else x + 0.1
    label = torch.tensor([0, 2, 1]) if n_classes else None
    outputs = []
    for level in range(len(LEVELS)):
        whole = model(x, context, label, torch.full((3,), level))
        fixed = at_level(model, level)
        assert fixed.config.noise_levels == ()
        outputs.append(fixed(x, context, label))
        torch.testing.assert_close(outputs[-1], whole, rtol=1e-5, atol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 0.01
    mixed = model(x, context, label, torch.tensor([0, 1, 2]))
    # The level of one image does not reach another.
    expected = torch.stack([outputs[i][i] for i in range(3)])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_levels_that_do_not_fit() -> None:
    model, x = network(noise_levels=LEVELS), images()
    for level, message in (
        (None, "level is missing: the model has 3 noise_levels"),
        (torch.tensor([0, 1, 3]), "level must lie in 0 .. 2, got 0 .. 3"),
        (torch.tensor([0]), r"level must have shape \(3,\), got \(1,\)"),
        (torch.tensor([0.1, 0.2, 0.3]), "level must be an int64 tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            model(x, level=level)
    with pytest.raises(ValueError, match="level was given, but the model has no noise_levels"):
        at_level(model, 0)(x, level=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"level must lie in 0 .. 2, got 3"):
        at_level(model, 3)
    with pytest.raises(ValueError, match="the model has no noise_levels"):
        at_level(at_level(model, 0), 0)
    for levels in ((0.5, 0.1), (0.0, 0.5), (0.5, 0.5), (float("nan"),)):
        with pytest.raises(ValueError, match="noise_levels must be positive and rise"):
            ModelConfig(noise_levels=levels)
    some = ModelConfig(noise_levels=LEVELS)
    with pytest.raises(ValueError, match="noise_levels are for a noisy model or a denoiser"):
        TrainConfig(role="plain", model=some)
    with pytest.raises(ValueError, match="with gaussian smoothing"):
        TrainConfig(model=some, smoothing="laplace")


def test_training_draws_levels_evenly_and_noise_of_their_scales() -> None:
    """An image's level follows from its place in the stream alone."""
    config = tiny("denoiser", noise_levels=LEVELS)
    assert config.scale == LEVELS[-1]
    x = torch.zeros(3000, 1, 8, 8)
    target, context, _, level = make_inputs(x, config, first_index=5)
    assert level is not None
    assert context is not None
    assert torch.equal(target, x)
    words = image_words(3000, 1, seed=config.seed, first_index=5, stream=Stream.LEVEL)
    assert torch.equal(level, words[:, 0, 0] * 3 >> 32)
    for i, scale in enumerate(LEVELS):
        here = context[level == i]
        assert abs(len(here) / len(x) - 1 / 3) < 0.03
        assert here.std() == pytest.approx(scale, rel=0.02)
    later = make_inputs(x[:10], config, first_index=105)
    assert torch.equal(later.context, context[100:110])
    assert torch.equal(later.level, level[100:110])
    noisy = TrainConfig(model=ModelConfig(noise_levels=LEVELS, likelihood="gaussian"))
    assert noisy.model.smoothing_scale == LEVELS[0]


@pytest.mark.quick
def test_a_step_down_is_bayes_rule() -> None:
    """q(low | x) q(high | low) = q(high | x) q(low | x, high)."""
    low, high, x = 0.2, 0.5, images().double()
    x_low = GaussianSmoothing(low).sample(x, seed=1)
    between = GaussianSmoothing((high**2 - low**2) ** 0.5)
    x_high = between.sample(x_low, seed=2)
    joint = GaussianSmoothing(low).log_prob(x_low, x) + between.log_prob(x_high, x_low)
    mean, noise = step_down(low, high, x, x_high)
    other = GaussianSmoothing(high).log_prob(x_high, x) + noise.log_prob(x_low, mean)
    torch.testing.assert_close(other, joint)


def test_rungs_have_seeds_of_their_own() -> None:
    seeds = {seed_of_rung(5, rung, repeat) for rung in range(1, 4) for repeat in range(3)}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert seed_of_rung(5, 0, 2) == 5


def pair_of_levels(noisy: int = 0, denoiser: int = 0) -> dsmooth.SmoothedPair:
    """A pair of so many classes."""
    return tiny_pair(classes=(noisy, denoiser), noise_levels=LEVELS)


def test_one_level_is_two_step_sampling() -> None:
    """Bit for bit that of an ordinary pair with the level's weights, as is the bound."""
    pair = pair_of_levels()
    for scale, levels in ((0.1, (0.1,)), (0.5, None)):
        plain = pair.at(scale)
        assert plain.noise_levels == (scale,)
        assert torch.equal(pair.elbo(images(), levels=levels), plain.elbo(images()))
        for method in ("two-step", "noisy", "single-step"):
            ours = pair.sample(2, levels=levels, method=method)
            assert torch.equal(ours, plain.sample(2, method=method))
    assert torch.equal(pair.single_step(images()), plain.single_step(images()))


@pytest.mark.parametrize("n_classes", [0, 3])
def test_a_ladder_step_by_step(n_classes: int) -> None:
    """Its images are those of its parts, whatever stands beside them in the batch."""
    pair, label = pair_of_levels(n_classes, n_classes), 1 if n_classes else None
    high, low = pair.at(0.5), pair.at(0.1)
    seed = seed_of_rung(4, 1)
    x_high = high.sample(3, label=label, seed=4, method="noisy")
    x = high.denoise(x_high, label=label, seed=seed)
    mean, noise = step_down(0.1, 0.5, x, x_high)
    x_low = noise.sample(mean, seed=seed)
    expected = low.denoise(x_low, label=label, seed=4)
    seen: list[float] = []
    drawn = pair.sample(3, label=label, seed=4, levels=(0.5, 0.1), progress=seen.append)
    assert torch.equal(drawn, expected)
    assert (seen, seen[-1]) == (sorted(seen), 1)
    assert torch.equal(pair.denoise(x_high, label=label, seed=4, levels=(0.5, 0.1)), drawn)
    noisy = pair.sample(3, label=label, seed=4, levels=(0.5, 0.1), method="noisy")
    assert torch.equal(noisy, x_low)
    alone = pair.sample(1, label=label, seed=4, levels=(0.5, 0.1), first_index=2)
    assert torch.equal(alone, drawn[2:])
    whole = pair.sample(2, label=label, levels=tuple(reversed(LEVELS)))
    assert whole.isfinite().all()


def test_known_pixels_stay_on_a_ladder() -> None:
    pair, x = pair_of_levels(), images()
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    drawn = pair.sample(3, levels=(0.5, 0.25, 0.1), known=x, mask=mask)
    assert torch.equal(drawn[:, :, :4], x[:, :, :4])
    nothing = pair.sample(3, levels=(0.5, 0.1), known=x, mask=torch.zeros_like(mask))
    assert torch.equal(nothing, pair.sample(3, levels=(0.5, 0.1)))


def test_a_completion_among_candidates_is_that_of_its_level() -> None:
    pair = pair_of_levels()
    given = known_pixels(images(), torch.eye(8, dtype=torch.bool)[None], 3)
    request = Request(3, seed=4, known=given, levels=(0.25,))
    drawn = []
    for own in (pair, pair.at(0.25)):
        models = Models({"noisy": own.noisy, "denoiser": own.denoiser}, own, (8, 8), ())
        drawn.append(gather(models.drawer(request, candidates=2), request, chunk=3))
    assert drawn[0] is not None
    assert torch.equal(*drawn)


def test_ladders_that_do_not_fit() -> None:
    pair = pair_of_levels()
    for levels in ((0.1, 0.5), (0.5, 0.5), (0.3,), (), np.array([0.1, 0.5])):
        with pytest.raises(ValueError, match=r"levels must fall and be among 0.1, 0.25, 0.5, got"):
            pair.sample(1, levels=levels)
    assert Request(1, levels=(0.5, 0.1)).identity() != Request(1, levels=(0.5,)).identity()
    with pytest.raises(ValueError, match=r"the noise levels of the pair are \(0.5,\), not 0.1"):
        pair.at(0.5).at(0.1)
    other = network("concat", noise_levels=(0.1, 0.5))
    with pytest.raises(ValueError, match="the models must have the same noise_levels"):
        dsmooth.SmoothedPair(pair.noisy, other, pair.smoothing, (8, 8))
    with pytest.raises(ValueError, match=r"need gaussian smoothing of scale 0.5"):
        dsmooth.SmoothedPair(pair.noisy, pair.denoiser, GaussianSmoothing(0.1), (8, 8))


def test_the_bound_of_a_ladder_is_below_the_truth() -> None:
    """For images whose noisy and posterior distributions are known exactly.

    Perfect models make every bracket exact, so the bound is log p(x) itself.
    """
    pairs = [PerfectPair(scale) for scale in (1.5, 0.9, 0.6)]
    x = PerfectPair.draw(40, seed=3)
    x_tilde = GaussianSmoothing(0.6).sample(x, seed=1)
    bound = log_prob_of_noisy(pairs, x_tilde, seed=2)
    torch.testing.assert_close(bound, pairs[-1].noisy_log_prob(x_tilde), rtol=1e-9, atol=1e-9)
    # A denoiser that is wrong makes it lower, on average.
    worse = [PerfectPair(scale, tilt=0.7) for scale in (1.5, 0.9, 0.6)]
    loss = (pairs[-1].noisy_log_prob(x_tilde) - log_prob_of_noisy(worse, x_tilde, seed=2)).mean()
    assert loss > 0.1


def test_a_ladder_draws_one_class_for_all_its_rungs() -> None:
    pair = pair_of_levels(3, 3)
    own = Request(4, seed=2, label="prior").labels(3)
    assert len(own.unique()) > 1
    levels = (0.5, 0.1)
    drawn = pair.sample(4, seed=2, levels=levels)
    assert torch.equal(drawn, pair.sample(4, seed=2, levels=levels, label=own))


def test_the_bound_of_a_ladder_without_a_label_is_of_all_classes() -> None:
    """The denoiser has a part in log p(x~) there, if the noisy model has no classes."""
    pair, x = pair_of_levels(0, 3), images()
    every = [pair.elbo(x, label=torch.full((3,), i), levels=(0.5, 0.1)) for i in range(3)]
    expected = torch.stack(every).logsumexp(0) - math.log(3)
    torch.testing.assert_close(pair.elbo(x, levels=(0.5, 0.1)), expected)


def test_a_ladder_scores_its_draws_in_the_precision_that_drew_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Precision "auto" draws in bfloat16, as on a GPU, and the caller scores in bfloat16."""
    pair = pair_of_levels()
    pairs = [pair.at(level) for level in (0.5, 0.1)]
    expected = log_prob_of_noisy(pairs, images(), seed=2)
    monkeypatch.setattr(Execution, "precision_on", lambda self, device: AS_ON_CUDA[self.precision])
    assert torch.equal(log_prob_of_noisy(pairs, images(), seed=2), expected)
    scored: list[tuple[bool, float]] = []
    real = dsmooth.SmoothedPair.denoiser_log_prob

    def log_prob(self: dsmooth.SmoothedPair, *args: Any) -> Tensor:
        scored.append((torch.is_autocast_enabled("cpu"), self.smoothing.scale))
        return real(self, *args)

    monkeypatch.setattr(dsmooth.SmoothedPair, "denoiser_log_prob", log_prob)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob_of_noisy(pairs, images(), seed=2)
    assert scored == [(True, 0.5), (False, 0.1)]


def test_a_ladder_in_half_precision_has_nearly_the_bound() -> None:
    pair, x = pair_of_levels(), images()
    half = copy.deepcopy(pair).bfloat16().elbo(x.bfloat16(), levels=(0.5, 0.1))
    torch.testing.assert_close(half, pair.elbo(x, levels=(0.5, 0.1)), rtol=0.1, atol=0)


AS_ON_CUDA = {"auto": "bfloat16", "bfloat16": "bfloat16", "float32": "float32"}


class PerfectPair:
    """p(x~) and p(x | x~) of images whose pixels are independent, -1 or 1, 1 with probability 0.3.

    tilt: added to the log-odds of the denoiser, which is then wrong.
    """

    label_for = staticmethod(lambda model, label: label)
    denoiser = None

    def __init__(self, scale: float, tilt: float = 0.0) -> None:
        self.smoothing = GaussianSmoothing(scale)
        self.tilt = tilt

    @staticmethod
    def draw(n: int, seed: int) -> Tensor:
        u = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
        return torch.where(u < 0.3, 1.0, -1.0).double()

    def noisy_log_prob(self, x_tilde: Tensor, label: None = None) -> Tensor:
        up, down = (self.smoothing.log_density(x_tilde - x) for x in (1.0, -1.0))
        return torch.logaddexp(up + math.log(0.3), down + math.log(0.7)).flatten(1).sum(1)

    def log_odds(self, x_tilde: Tensor) -> Tensor:
        up, down = (self.smoothing.log_density(x_tilde - x) for x in (1.0, -1.0))
        return up - down + math.log(0.3 / 0.7) + self.tilt

    def denoiser_log_prob(self, x: Tensor, x_tilde: Tensor, label: None = None) -> Tensor:
        return torch.nn.functional.logsigmoid(x * self.log_odds(x_tilde)).flatten(1).sum(1)

    def denoise(
        self, x_tilde: Tensor, *, label: None, precision: str, seed: int, first_index: int
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed % 2**63)
        u = torch.rand(x_tilde.shape, generator=generator, dtype=torch.float64)
        return torch.where(u < self.log_odds(x_tilde).sigmoid(), 1.0, -1.0).double()


def test_scores_of_a_ladder_are_its_bound() -> None:
    pair = pair_of_levels()
    data = random_dataset(5)
    for levels in (None, (0.5, 0.1)):
        scores = score_pair(pair, data, n_noise=2, levels=levels)
        bound = pair.elbo(data.batch(torch.arange(5)), n_noise=2, levels=levels)
        total = scores.log_weights("discretized").mean(0)
        torch.testing.assert_close(total.float(), bound, rtol=1e-4, atol=1e-2)
