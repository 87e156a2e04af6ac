"""Completion: known pixels stay, and every other pixel is the one that the sampler draws there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.nn import PixelCNNpp
from dsmooth.sampling import (
    CachedSampler,
    jacobi_sample,
    keep_top,
    sample_images,
    sequential_sample,
)
from dsmooth.sampling.classes import draw_classes, log_known
from dsmooth.sampling.known import known_pixels
from dsmooth.sampling.request import Request
from tests.helpers.data_makers import refuses
from tests.helpers.networks import ATOMS, BYTES, CLASSES, images, inputs, network, tiny_pair
from tests.helpers.sampler_checks import FIRST, SEED, context_for, teacher_forced

N, SIZE = 3, (8, 8)
SETTINGS: dict[str, Any] = {"height": 8, "width": 8, "seed": SEED, "first_index": FIRST}
CUDA = [
    pytest.param(name, marks=pytest.mark.gpu)
    for name in ("cached cuda", "cached cuda bfloat16")
    if torch.cuda.is_available()
]
SAMPLERS = ("sequential", "jacobi", "cached", "cached bfloat16", *CUDA)
CASES = [("none", 1, {}), ("stack", 3, {}), ("concat", 1, ATOMS), ("stack", 1, BYTES)]


def draw(sampler: str, model: PixelCNNpp, **given: Any) -> Tensor:
    """N images by a sampler of this name."""
    given = {**SETTINGS, "context": context_for(model, N, *SIZE), **given}
    if sampler.startswith("cached"):
        dtype = torch.bfloat16 if sampler.endswith("bfloat16") else torch.float32
        if "cuda" in sampler:
            model = copy.deepcopy(model).cuda()
            given = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in given.items()}
        return CachedSampler(model, dtype).sample(N, **given).cpu()
    if sampler == "jacobi":
        return jacobi_sample(model, N, **given).images
    return sequential_sample(model, N, **given)


def random_mask(n: int = N) -> Tensor:
    """A mask of half of the pixels; the second row is known in all images, the last in none."""
    mask = torch.rand(n, *SIZE, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, 1], mask[:, -1] = True, False
    return mask


@pytest.mark.quick
@pytest.mark.grid
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("conditioning", "channels", "mixture"), CASES)
def test_a_sample_with_all_of_it_none_or_parts_known(
    conditioning: str, channels: int, mixture: dict[str, Any], sampler: str
) -> None:
    """Bit for bit; a continuous pixel of Jacobi sampling has settled up to rounding only."""
    model = network(conditioning, channels=channels, n_filters=4, **mixture)
    own = images(channels=channels).mT  # strided
    everywhere = torch.ones(1, *SIZE, dtype=torch.bool)
    assert torch.equal(draw(sampler, model, known=own, mask=everywhere), own)
    x, nothing = draw(sampler, model), torch.full_like(own, torch.nan)
    assert torch.equal(draw(sampler, model, known=nothing, mask=~everywhere), x)
    rounding = 1e-5 if sampler == "jacobi" and not mixture else 0.0
    for mask in (random_mask(), keep_top(0.5, SIZE)):
        again = draw(sampler, model, known=x, mask=mask)
        torch.testing.assert_close(again, x, rtol=rounding, atol=rounding)


@pytest.mark.grid
@pytest.mark.parametrize("sampler", ["sequential", "jacobi", "cached"])
@pytest.mark.parametrize(("conditioning", "channels", "mixture"), CASES)
def test_drawn_pixels_follow_from_the_pixels_before_them(
    conditioning: str, channels: int, mixture: dict[str, Any], sampler: str
) -> None:
    """Teacher forcing: one forward on the completed images, then the same noise."""
    model = network(conditioning, channels=channels, n_filters=4, **mixture)
    known, mask = images(channels=channels), random_mask()
    x = draw(sampler, model, known=known, mask=mask)
    kept = mask[:, None].expand_as(x)
    assert torch.equal(x[kept], known[kept])
    context = context_for(model, N, *SIZE)
    again, _ = teacher_forced(model, x, context, torch.float64, 1.0)
    torch.testing.assert_close(x[~kept], again[~kept].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["sequential", "cached"])
def test_a_network_that_sees_bytes_takes_no_other_pixels(sampler: str) -> None:
    model, known, mask = network(**BYTES), images(), random_mask()
    for wrong in (0.3, 1 + 1 / 127.5, -1 - 1 / 127.5):
        with pytest.raises(ValueError, match=r"known must (have values of bytes|lie in \[-1, 1\])"):
            draw(sampler, model, known=torch.where(mask[:, None], wrong, known), mask=mask)
    draw(sampler, model, known=torch.where(mask[:, None], known, 0.3), mask=mask)


def test_one_image_and_one_mask_serve_all() -> None:
    model = network()
    known, mask = images(1), random_mask(1)
    x = sample_images(model, N, **SETTINGS, known=known, mask=mask)
    expanded = {"known": known.expand(N, -1, -1, -1), "mask": mask.expand(N, -1, -1)}
    assert torch.equal(x, sample_images(model, N, **SETTINGS, **expanded))
    drawn = x[:, :, ~mask[0]]
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("method", ["two-step", "single-step", "noisy"])
def test_a_pair_keeps_pixels_and_their_smoothed_ones(method: Any) -> None:
    pair = tiny_pair()
    x, mask = images(), random_mask()
    given = {"seed": 5, "first_index": 9, "method": method}
    completed = pair.sample(N, **given, known=x, mask=mask)
    kept = mask[:, None]
    x_tilde = pair.sample(N, **{**given, "method": "noisy"}, known=x, mask=mask)
    smoothed = pair.smoothing.sample(x, seed=5, first_index=9)
    at = SETTINGS | {"seed": 5, "first_index": 9}
    assert torch.equal(x_tilde, sample_images(pair.noisy, N, **at, known=smoothed, mask=mask))
    assert torch.equal(completed, pair.denoise(x_tilde, **given, known=x, mask=mask))
    assert torch.equal(completed[kept], (smoothed if method == "noisy" else x)[kept])


def test_what_is_known_decides_the_images() -> None:
    """A folder of shards must not be continued with another completion."""
    x, mask = images(), random_mask()
    masks = mask, ~mask, torch.ones_like(mask)
    requests = [Request(N, known=known_pixels(x, m, N)) for m in masks]
    requests += [Request(N), Request(N, known=known_pixels(-x, mask, N))]
    identities = [request.identity() for request in requests]
    assert all(identities[i] != identities[j] for i in range(5) for j in range(i))
    hidden = torch.where(mask[:, None], x, torch.nan)
    assert Request(N, known=known_pixels(hidden, mask, N)).identity() == identities[0]


def test_keep_top() -> None:
    for fraction, rows in ((0, 0), (0.2, 2), (0.25, 2), (0.3, 2), (0.5, 4), (1, 8)):
        mask = keep_top(fraction, (8, 12))
        assert mask.shape == (1, 8, 12)
        assert mask[:, :rows].all()
        assert not mask[:, rows:].any()
    for fraction in (-0.1, 1.5, float("nan")):
        refuses(r"`keep_top` must lie in 0 \.\. 1, got", keep_top, fraction, SIZE)


CLASSIFIED = (("none", False), ("none", True), ("concat", True))


@pytest.mark.parametrize(("conditioning", "discretized"), CLASSIFIED)
def test_the_probability_of_known_pixels_is_exact_where_they_come_first(
    conditioning: str, discretized: bool
) -> None:
    """Of all pixels it is the likelihood of the image; later pixels do not enter."""
    likelihood = "discretized" if discretized else "continuous"
    model = network(conditioning, likelihood=likelihood, n_classes=CLASSES)
    x, context, _ = inputs(conditioning)
    classes = model.config.classes
    whole = torch.ones(1, 8, 8, dtype=torch.bool)
    found = log_known(model, known_pixels(x, whole, 3), classes, context)
    for number in range(CLASSES):
        expected = model.log_prob(x, context, torch.full((3,), number))
        torch.testing.assert_close(found[:, number].float(), expected)
    # By the chain rule: pixel after pixel, each given those before it.
    params = model(x, context, torch.full((3,), 1))
    pixels = model.log_prob_of_pixels(x, params).flatten(1).double()
    for count in (0, 5, 8, 35):
        mask = (torch.arange(64) < count).view(1, 8, 8)
        found = log_known(model, known_pixels(x, mask, 3), classes, context)
        torch.testing.assert_close(found[:, 1], pixels[:, :count].sum(1))


def test_the_class_of_a_completion_is_drawn_given_the_known_pixels() -> None:
    """As often as Bayes' rule says, by a function of the image's number; else without a class."""
    pair, n = tiny_pair(classes=(CLASSES, CLASSES)), 3000
    shares = (0.5, 0.3, 0.2)
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, class_shares=shares, hidden_labels=0.1)
    x, mask = images(1), keep_top(0.25, (8, 8))
    known = known_pixels(x, mask, n)
    request = Request(n, seed=2, label="known", known=known)
    drawn = draw_classes(pair.noisy, request, known, pair.classes)
    log_joint = log_known(pair.noisy, known_pixels(x, mask, 1), pair.classes)[0]
    expected = (log_joint + torch.tensor(shares).log()).softmax(0)
    assert (expected - torch.tensor(shares)).abs().max() > 0.01  # the pixels say something
    counts = drawn.bincount(minlength=CLASSES)
    error = (n * expected * (1 - expected)).sqrt()
    assert ((counts - n * expected).abs() < 4 * error + 1).all()
    part = draw_classes(pair.noisy, request.part(7, 5), known_pixels(x, mask, 5), pair.classes)
    assert torch.equal(part, drawn[7:12])
    # The pair draws by it: of the noisy known pixels that the noisy model sees.
    noisy = pair.smoothing.sample(x.expand(4, -1, -1, -1), seed=5)
    known = known_pixels(noisy, mask, 4)
    label = draw_classes(
        pair.noisy, Request(4, seed=5, label="known", known=known), known, pair.classes
    )
    expected = pair.sample(4, seed=5, known=x, mask=mask, label=label)
    assert torch.equal(pair.complete(x, mask, draws=4, seed=5), expected)


@pytest.mark.parametrize("hidden_labels", [None, 0.0, 0.1])
def test_known_pixels_elsewhere_give_no_class(hidden_labels: float | None) -> None:
    """Then the label is zeros if the network learned it, else the class is of the prior."""
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, hidden_labels=hidden_labels)
    x, mask = images(2), torch.eye(8, dtype=torch.bool)[None]
    label: object = torch.zeros(2, CLASSES) if hidden_labels else "prior"
    expected = pair.sample(2, known=x, mask=mask, seed=1, label=label)
    assert torch.equal(pair.complete(x, mask, seed=1), expected)
