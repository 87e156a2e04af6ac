"""Completion: known pixels stay, and every other pixel is the one that the sampler draws there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.nn import PixelCNNpp
from dsmooth.sampling import CachedSampler, keep_top, sample_images, sequential_sample
from dsmooth.sampling.known import known_pixels
from dsmooth.sampling.request import Request
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, CLASSES, images, network, numbered, tiny_pair
from tests.helpers.sampler_checks import FIRST, SEED, context_for, teacher_forced

N, SIZE = 3, (8, 8)
SETTINGS: dict[str, Any] = {"height": 8, "width": 8, "seed": SEED, "first_index": FIRST}
CUDA = [
    pytest.param(name, marks=pytest.mark.gpu)
    for name in ("cached cuda", "cached cuda bfloat16")
    if torch.cuda.is_available()
]
SAMPLERS = ("sequential", "cached", "cached bfloat16", *CUDA)
CASES = [("none", 1, {}), ("stack", 3, {}), ("concat", 1, BYTES), ("stack", 1, BYTES)]


def draw(sampler: str, model: PixelCNNpp, **given: Any) -> Tensor:
    """N images by a sampler of this name."""
    given = {**SETTINGS, "context": context_for(model, N, *SIZE), **given}
    if sampler.startswith("cached"):
        dtype = torch.bfloat16 if sampler.endswith("bfloat16") else torch.float32
        if "cuda" in sampler:
            model = copy.deepcopy(model).cuda()
            given = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in given.items()}
        return CachedSampler(model, dtype).sample(N, **given).cpu()
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
    """Bit for bit."""
    model = network(conditioning, channels=channels, n_filters=4, **mixture)
    own = images(channels=channels).mT  # strided
    everywhere = torch.ones(1, *SIZE, dtype=torch.bool)
    assert torch.equal(draw(sampler, model, known=own, mask=everywhere), own)
    x, nothing = draw(sampler, model), torch.full_like(own, torch.nan)
    assert torch.equal(draw(sampler, model, known=nothing, mask=~everywhere), x)
    for mask in (random_mask(), keep_top(0.5, SIZE)):
        assert torch.equal(draw(sampler, model, known=x, mask=mask), x)


@pytest.mark.grid
@pytest.mark.parametrize("sampler", ["sequential", "cached"])
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
    assert torch.equal(x, sample_images(model, N, **SETTINGS, known=known, mask=mask[0]))
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
    """And so two requests are told apart by their identity."""
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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_completion_without_a_label_has_no_class(dropout: float) -> None:
    """If the models learned that; else the label must be given."""
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, classes=numbered(CLASSES, dropout))
    x, upper = images(2), keep_top(0.5, SIZE)
    if not dropout:
        refuses("`label` must be given to complete images", pair.complete, x)
        return
    expected = pair.sample(2, known=x, mask=upper, label=-1)
    assert torch.equal(pair.complete(x), expected)
