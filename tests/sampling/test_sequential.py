"""Sampling by whole forwards: what it draws follows from the network's parameters and the noise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dsmooth.sampling import jacobi_sample, keep_top, sequential, sequential_sample
from tests.helpers.networks import MIXTURES, network
from tests.helpers.sampler_checks import FIRST, SEED, context_for, labels_of, teacher_forced


@pytest.mark.grid
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize(
    ("conditioning", "channels", "n_classes"),
    [("none", 1, 3), ("none", 3, 0), ("stack", 1, 0), ("stack", 3, 0), ("concat", 3, 3)],
)
def test_samples_are_redrawn_from_their_own_parameters(
    conditioning: str, channels: int, n_classes: int, mixture: dict[str, Any], temperature: float
) -> None:
    """Teacher forcing: one forward on the samples, then the same noise, gives the samples. Jacobi
    iterations give them too, in no more forwards than pixels."""
    settings = {"conditioning": conditioning, "channels": channels, "n_classes": n_classes}
    model = network(n_filters=4, **settings, **mixture).double()
    context = context_for(model, 3, 8, 4)
    context = None if context is None else context.double()
    label, guidance = labels_of(3, n_classes), 0.3 if n_classes else 0.0
    given = {"height": 8, "width": 4, "seed": SEED, "first_index": FIRST, "context": context}
    given |= {"label": label, "guidance": guidance, "temperature": temperature}
    x = sequential_sample(model, 3, **given)
    again, _ = teacher_forced(model, x, context, torch.float64, temperature, label, guidance)
    torch.testing.assert_close(x, again, rtol=1e-9, atol=1e-9)
    assert x.std() > 0.1
    settled, iterations = jacobi_sample(model, 3, **given)
    discretized = model.config.likelihood == "discretized"
    rounding = 0.0 if discretized else 1e-12
    torch.testing.assert_close(settled, x, rtol=rounding, atol=rounding)
    assert iterations.shape == (3,)
    assert iterations.dtype == torch.int64
    assert ((iterations >= 2) & (iterations <= 8 * 4 + 1)).all()
    if discretized:
        levels = (x + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-9
        assert x.abs().max() <= 1


@pytest.mark.quick
def test_images_settle_one_by_one() -> None:
    model = network(likelihood="discretized").double()
    with torch.no_grad():
        model.head.weight_g.mul_(10)  # pixels that depend on one another
    x, iterations = jacobi_sample(model, 6, height=8, width=8, first_index=10)
    assert len(iterations.unique()) > 1
    assert (iterations > 2).all()  # the last one only confirms
    single, count = jacobi_sample(model, 1, height=8, width=8, first_index=13)
    assert torch.equal(single[0], x[3])
    assert count == iterations[3]
    model.head.weight_g.data.zero_()  # pixels that ignore one another
    assert jacobi_sample(model, 2, height=8, width=8).iterations.tolist() == [2, 2]


def test_images_in_half_precision_settle_exactly() -> None:
    """Eight roundings of bfloat16 would be 6 % of a pixel."""
    model, size = network(likelihood="continuous").bfloat16(), {"height": 8, "width": 8}
    x = sequential_sample(model, 16, **size)
    images = x.flatten(1).isfinite().all(1)  # others diverge: the model is not trained
    assert images.sum() > 4
    settled, iterations = jacobi_sample(model, 16, **size)
    assert torch.equal(settled[images], x[images])
    assert (iterations[images] < 65).all()


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


def test_long_drawing_states_how_long_it_takes(monkeypatch, caplog) -> None:
    """Once, after the first row that is drawn."""
    monkeypatch.setattr(sequential, "LEAST_STATED", 0.0)
    known, mask = torch.zeros(1, 1, 8, 8), keep_top(0.5, (8, 8))
    sequential_sample(network(), 1, height=8, width=8, known=known, mask=mask)
    (message,) = caplog.messages
    assert re.fullmatch(r"drawing pixel by pixel: about \d+:\d\d left", message)
    monkeypatch.setattr(sequential, "LEAST_STATED", 1e9)
    sequential_sample(network(), 1, height=8, width=8)
    assert caplog.messages == [message]
