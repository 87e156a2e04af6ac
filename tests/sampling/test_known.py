"""Completion: known pixels stay, and every other pixel is the one that the sampler draws there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.sampling import keep_top, sample_images
from tests.helpers.data_makers import refuses
from tests.helpers.networks import BYTES, CLASSES, images, network, numbered, tiny_pair
from tests.helpers.sampler_checks import (
    FIRST,
    SEED,
    context_for,
    make_sampler,
    teacher_forced,
)

N, SIZE = 3, (8, 8)
DTYPES = torch.float32, torch.bfloat16
SAMPLERS = [(torch.float32, "sequential"), (torch.float32, "auto"), (torch.bfloat16, "auto")]
if torch.cuda.is_available():
    SAMPLERS += [pytest.param(dtype, "cuda", marks=pytest.mark.gpu) for dtype in DTYPES]
CASES = [("none", 1, {}), ("stack", 3, {}), ("concat", 1, BYTES), ("stack", 1, BYTES)]


def random_mask(n: int = N, size: tuple[int, int] = SIZE) -> Tensor:
    """A mask of half of the pixels; the second row is known in all images, the last in none."""
    mask = torch.rand(n, *size, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, 1], mask[:, -1] = True, False
    return mask


@pytest.mark.quick
@pytest.mark.grid
@pytest.mark.parametrize(("dtype", "code"), SAMPLERS)
@pytest.mark.parametrize(("conditioning", "channels", "mixture"), CASES)
def test_known_pixels_stay_and_the_others_follow_from_them(
    conditioning: str, channels: int, mixture: dict[str, Any], dtype: torch.dtype, code: str
) -> None:
    """Bit for bit where all, nothing or parts of a sample are known; else by teacher forcing."""
    model = network(conditioning, channels=channels, n_filters=4, **mixture)
    sampler, size = make_sampler(model, dtype, code), (4, 8)
    context = context_for(model, N, *size)

    def draw(**given: Any) -> Tensor:
        given |= {"context": context, "seed": SEED, "first_index": FIRST}
        given = {k: v.to(sampler.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        return sampler.sample(N, *size, **given).cpu()

    own = images(channels=channels, size=(8, 4)).mT  # strided
    everywhere, mask = torch.ones(1, *size, dtype=torch.bool), random_mask(size=size)
    assert torch.equal(draw(known=own, mask=everywhere), own)
    assert torch.equal(draw(known=own[:1], mask=everywhere[0]), own[:1].expand_as(own))
    x, nothing = draw(), torch.full_like(own, torch.nan)
    assert torch.equal(draw(known=nothing, mask=~everywhere), x)
    for part in (mask, keep_top(0.5, size)):
        assert torch.equal(draw(known=x, mask=part), x)
    completed, kept = draw(known=own, mask=mask), mask[:, None].expand_as(x)
    assert torch.equal(completed[kept], own[kept])
    if dtype == torch.float32:
        again, _ = teacher_forced(model, completed, context, torch.float64, 1.0)
        torch.testing.assert_close(completed[~kept], again[~kept].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", ["sequential", "auto"])
def test_a_network_that_sees_bytes_takes_no_other_pixels(code: str) -> None:
    known, mask = images(), random_mask()
    sampler = make_sampler(network(**BYTES), torch.float32, code)
    for wrong in (0.3, 1 + 1 / 127.5, -1 - 1 / 127.5):
        given = {"known": torch.where(mask[:, None], wrong, known), "mask": mask}
        words = r"known must (have values of bytes|lie in \[-1, 1\])"
        refuses(words, sampler.sample, N, *SIZE, **given)
    sampler.sample(N, *SIZE, known=torch.where(mask[:, None], known, 0.3), mask=mask)


@pytest.mark.parametrize("method", ["two-step", "single-step", "noisy"])
def test_a_pair_keeps_pixels_and_their_smoothed_ones(method: Any) -> None:
    pair = tiny_pair()
    x, mask = images(), random_mask()
    given = {"seed": 5, "first_index": 9, "method": method}
    completed = pair.sample(N, **given, known=x, mask=mask)
    kept = mask[:, None]
    x_tilde = pair.sample(N, **{**given, "method": "noisy"}, known=x, mask=mask)
    smoothed = pair.smoothing.sample(x, seed=5, first_index=9)
    at: dict[str, Any] = {"height": 8, "width": 8, "seed": 5, "first_index": 9}
    assert torch.equal(x_tilde, sample_images(pair.noisy, N, **at, known=smoothed, mask=mask))
    assert torch.equal(completed, pair.denoise(x_tilde, **given, known=x, mask=mask))
    assert torch.equal(completed[kept], (smoothed if method == "noisy" else x)[kept])


def test_keep_top() -> None:
    for fraction, rows in ((0, 0), (0.2, 2), (0.25, 2), (0.3, 2), (0.5, 4), (1, 8)):
        mask = keep_top(fraction, (8, 12))
        assert mask.shape == (1, 8, 12)
        assert mask[:, :rows].all()
        assert not mask[:, rows:].any()
    for fraction in (-0.1, 1.5, float("nan")):
        refuses(r"`keep_top` must lie in 0 \.\. 1, got", keep_top, fraction, SIZE)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_given_without_a_label_has_no_class(dropout: float) -> None:
    """If the models learned that; else the label must be given."""
    pair = tiny_pair(classes=(CLASSES, CLASSES))
    for model in (pair.noisy, pair.denoiser):
        model.config = replace(model.config, classes=numbered(CLASSES, dropout))
    x, upper = images(2), keep_top(0.5, SIZE)
    if not dropout:
        for call in (pair.complete, pair.denoise, pair.single_step):
            refuses("`label` is missing: .* without label dropout", call, x)
        return
    expected = pair.sample(2, known=x, mask=upper, label=-1)
    assert torch.equal(pair.complete(x), expected)
    assert torch.equal(pair.denoise(x), pair.denoise(x, label=-1))
    assert torch.equal(pair.single_step(x), pair.single_step(x, label=-1))
