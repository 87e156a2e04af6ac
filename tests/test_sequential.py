"""The sequential sampler: what it draws follows from the network's parameters and the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.functional import logistic_mixture_sample
from dsmooth.philox import Stream, image_words, to_uniform
from dsmooth.sampling import CachedSampler, jacobi_sample, sequential_sample
from tests.helpers.sampler_checks import ATOMS, GAUSSIAN


def tiny(conditioning: str, channels: int, **mixture: Any) -> dsmooth.PixelCNNpp:
    torch.manual_seed(0)
    config = dsmooth.ModelConfig(
        image_channels=channels,
        n_filters=4,
        n_resnet=1,
        n_mix=2,
        conditioning=conditioning,
        context_layers=1,
        **mixture,
    )
    model = dsmooth.PixelCNNpp(config).double()
    with torch.no_grad():  # small outputs: an untrained network would feed on itself and diverge
        model.head.weight_g.mul_(0.3)
    return model


def context_for(model: dsmooth.PixelCNNpp, n: int, height: int, width: int) -> Tensor | None:
    if model.config.conditioning == "none":
        return None
    generator = torch.Generator().manual_seed(5)
    shape = (n, model.config.image_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "mixture",
    [{}, {"likelihood": "discretized"}, ATOMS, GAUSSIAN],
    ids=["continuous", "discretized", "atoms", "gaussian"],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_samples_are_redrawn_from_their_own_parameters(
    conditioning: str, channels: int, mixture: dict[str, Any], temperature: float
) -> None:
    """Teacher forcing: one forward on the samples, then the same noise, gives the samples."""
    height, width, seed, first = 8, 12, 2**35 + 1, 7
    model = tiny(conditioning, channels, **mixture)
    context = context_for(model, 2, height, width)
    x = sequential_sample(
        model,
        2,
        height=height,
        width=width,
        seed=seed,
        first_index=first,
        context=context,
        temperature=temperature,
    )
    stream = Stream.SAMPLE if context is None else Stream.SAMPLE_CONDITIONED
    words = image_words(2, height * width, seed=seed, first_index=first, stream=stream)
    uniforms = to_uniform(words).view(2, height, width, 4).permute(0, 3, 1, 2)
    model.eval()
    with torch.no_grad():
        params = model(x, context)
    again = logistic_mixture_sample(
        params, uniforms, channels, temperature=temperature, **model.config.mixture
    )
    torch.testing.assert_close(x, again, rtol=1e-9, atol=1e-9)
    assert x.std() > 0.1
    if model.config.likelihood == "discretized":
        levels = (x + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-9
        assert x.abs().max() <= 1


def test_an_image_depends_on_seed_and_index_only() -> None:
    model = tiny("concat", 1)
    context = context_for(model, 4, 4, 8)
    draw = {"height": 4, "width": 8}
    whole = sequential_sample(model, 4, seed=3, first_index=10, context=context, **draw)
    for i in range(4):
        one = sequential_sample(
            model, 1, seed=3, first_index=10 + i, context=context[i : i + 1], **draw
        )
        torch.testing.assert_close(one[0], whole[i], rtol=1e-9, atol=1e-9)
    other = sequential_sample(model, 4, seed=4, first_index=10, context=context, **draw)
    assert not torch.equal(other, whole)


def test_the_mode_of_the_model_is_never_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be training it."""
    model = tiny("none", 1).train().float()
    modes: set[bool] = set()
    decode = dsmooth.PixelCNNpp.decode

    def watch(self: dsmooth.PixelCNNpp, *args: Any) -> Tensor:
        modes.update(module.training for module in model.modules())
        assert not self.training
        return decode(self, *args)

    monkeypatch.setattr(dsmooth.PixelCNNpp, "decode", watch)
    sequential_sample(model, 1, height=4, width=4)
    jacobi_sample(model, 1, height=4, width=4)
    assert modes == {True}


def test_model_keeps_its_mode_and_dropout_is_off() -> None:
    model = tiny("none", 1).train()
    first = sequential_sample(model, 2, height=4, width=4)
    assert model.training
    assert torch.equal(first, sequential_sample(model, 2, height=4, width=4))


def test_a_count_that_no_memory_holds() -> None:
    model = tiny("none", 1)
    for draw in (sequential_sample, jacobi_sample, CachedSampler(model.float()).sample):
        first = () if draw.__name__ == "sample" else (model,)
        with pytest.raises(ValueError, match="images take 64,000,000,000,000 bytes"):
            draw(*first, 10**12, height=4, width=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "number of images must be at least 1, got 0"),
        ({"height": 6}, "height must be a positive multiple of 4, got 6"),
        ({"width": 0}, "width must be a positive multiple of 4, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"seed": -1}, "seed must lie in"),
        ({"first_index": -1}, "first_index must lie in"),
        ({"context": torch.zeros(1, 1, 4, 4)}, "context was given, but"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    model = tiny("none", 1).float()
    with pytest.raises(ValueError, match=message):
        sequential_sample(model, **{"n": 1, "height": 4, "width": 4, **arguments})
