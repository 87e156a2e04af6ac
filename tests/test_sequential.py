"""The sequential sampler: what it draws follows from the network's parameters and the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.functional import logistic_mixture_sample
from dsmooth.sampling import CachedSampler, jacobi_sample, sequential_sample
from tests.helpers.sampler_checks import (
    ATOMS,
    FIRST,
    GAUSSIAN,
    SEED,
    context_for,
    network,
    uniforms_of,
)


@pytest.mark.grid
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
    size = {"height": 8, "width": 12}
    model = network(channels=channels, conditioning=conditioning, n_filters=4, **mixture).double()
    context = context_for(model, 2, 8, 12)
    context = None if context is None else context.double()
    settings = {"seed": SEED, "first_index": FIRST, "temperature": temperature}
    x = sequential_sample(model, 2, **size, **settings, context=context)
    with torch.no_grad():
        params = model(x, context)
    uniforms = uniforms_of(model, 2, 8, 12, FIRST)
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
    model = network(conditioning="concat").double()
    context = context_for(model, 4, 4, 8)
    assert context is not None
    context = context.double()
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
    """Another thread may be training it; samples are drawn without dropout."""
    model = network().train().float()
    modes: set[bool] = set()
    decode = dsmooth.PixelCNNpp.decode

    def watch(self: dsmooth.PixelCNNpp, *args: Any) -> Tensor:
        modes.update(module.training for module in model.modules())
        assert not self.training
        return decode(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(dsmooth.PixelCNNpp, "decode", watch)
        x = sequential_sample(model, 1, height=4, width=4)
        settled = jacobi_sample(model, 1, height=4, width=4).images
    assert modes == {True}
    assert torch.equal(x, sequential_sample(model.eval(), 1, height=4, width=4))
    assert torch.equal(settled, jacobi_sample(model, 1, height=4, width=4).images)


def test_a_count_that_no_memory_holds() -> None:
    model = network()
    for draw in (sequential_sample, jacobi_sample, CachedSampler(model.float()).sample):
        first = () if draw.__name__ == "sample" else (model,)
        with pytest.raises(ValueError, match="images take 64,000,000,000,000 bytes"):
            draw(*first, 10**12, height=4, width=4)
