"""Sampling by whole forwards: what it draws follows from the network's parameters and the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsmooth.sampling import jacobi_sample, sequential_sample
from tests.helpers.networks import MIXTURES, network
from tests.helpers.sampler_checks import FIRST, SEED, context_for, labels_of, teacher_forced

each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


def double_network(n: int, size: tuple[int, int], **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A network in float64, and the arguments of a sampler."""
    model = network(n_filters=4, **settings).double()
    context = context_for(model, n, *size)
    given = {"height": size[0], "width": size[1], "seed": SEED, "first_index": FIRST}
    given["context"] = None if context is None else context.double()
    return model, given


@pytest.mark.grid
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@each_mixture
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_samples_are_redrawn_from_their_own_parameters(
    conditioning: str, channels: int, mixture: dict[str, Any], temperature: float
) -> None:
    """Teacher forcing: one forward on the samples, then the same noise, gives the samples."""
    model, given = double_network(
        2, (8, 12), channels=channels, conditioning=conditioning, **mixture
    )
    x = sequential_sample(model, 2, **given, temperature=temperature)
    again, _ = teacher_forced(model, x, given["context"], torch.float64, temperature)
    torch.testing.assert_close(x, again, rtol=1e-9, atol=1e-9)
    assert x.std() > 0.1
    if model.config.likelihood == "discretized":
        levels = (x + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-9
        assert x.abs().max() <= 1


@pytest.mark.grid
@each_mixture
@pytest.mark.parametrize(
    ("conditioning", "channels", "n_classes"),
    [("none", 1, 3), ("none", 3, 0), ("stack", 1, 0), ("concat", 3, 3)],
)
def test_jacobi_sampling_equals_sequential_sampling(
    conditioning: str, channels: int, n_classes: int, mixture: dict[str, Any]
) -> None:
    """In no more forwards than pixels."""
    height, width = size = 8, 4
    settings = {"conditioning": conditioning, "channels": channels, "n_classes": n_classes}
    model, given = double_network(3, size, **settings, **mixture)
    given["label"], given["guidance"] = labels_of(3, n_classes), 0.3 if n_classes else 0.0
    expected = sequential_sample(model, 3, **given)
    classes = given["label"], given["guidance"]
    again, _ = teacher_forced(model, expected, given["context"], torch.float64, 1.0, *classes)
    torch.testing.assert_close(expected, again, rtol=1e-9, atol=1e-9)
    x, iterations = jacobi_sample(model, 3, **given)
    rounding = 0.0 if model.config.likelihood == "discretized" else 1e-12
    torch.testing.assert_close(x, expected, rtol=rounding, atol=rounding)
    assert iterations.shape == (3,)
    assert iterations.dtype == torch.int64
    assert ((iterations >= 2) & (iterations <= height * width + 1)).all()


@pytest.mark.quick
def test_images_settle_one_by_one() -> None:
    model = network(likelihood="discretized").double()
    with torch.no_grad():
        model.head.weight_g.mul_(10)  # pixels that depend on one another
    x, iterations = jacobi_sample(model, 6, height=8, width=8, first_index=10)
    assert len(iterations.unique()) > 1
    assert (iterations > 2).all()  # the last one only confirms
    alone, count = jacobi_sample(model, 1, height=8, width=8, first_index=13)
    assert torch.equal(alone[0], x[3])
    assert count == iterations[3]
    model.head.weight_g.data.zero_()  # pixels that ignore one another
    assert jacobi_sample(model, 2, height=8, width=8).iterations.tolist() == [2, 2]


def test_the_mode_of_the_model_is_never_touched() -> None:
    """Another thread may be training it; samples are drawn without dropout."""
    model, modes = network().train().float(), set[tuple[bool, bool]]()
    watch = model.head.register_forward_pre_hook(
        lambda layer, _: modes.add((model.training, layer.training))
    )
    x = sequential_sample(model, 1, height=4, width=4)
    settled = jacobi_sample(model, 1, height=4, width=4).images
    watch.remove()
    assert modes == {(True, False)}
    assert torch.equal(x, sequential_sample(model.eval(), 1, height=4, width=4))
    assert torch.equal(settled, jacobi_sample(model, 1, height=4, width=4).images)
