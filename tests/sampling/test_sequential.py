"""Sampling by whole forwards: what it draws follows from the network's parameters and the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsmooth.sampling import sequential_sample
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
    """Teacher forcing: one forward on the samples, then the same noise, gives the samples."""
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
    if model.config.likelihood == "discretized":
        levels = (x + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-9
        assert x.abs().max() <= 1


def test_the_mode_of_the_model_is_never_touched() -> None:
    """Another thread may be training it; samples are drawn without dropout."""
    model, modes = network().train().float(), set[tuple[bool, bool]]()
    watch = model.head.register_forward_pre_hook(
        lambda layer, _: modes.add((model.training, layer.training))
    )
    x = sequential_sample(model, 1, height=4, width=4)
    watch.remove()
    assert modes == {(True, False)}
    assert torch.equal(x, sequential_sample(model.eval(), 1, height=4, width=4))
