"""The cached sampler and classes, beside the grids of test_cached_sampler.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.commands.options import Computing, Drawing, Sample
from dsmooth.commands.sample import sample
from dsmooth.sampling import CachedSampler, sample_images
from dsmooth.sampling.request import Request
from tests.helpers.sampler_checks import (
    ATOMS,
    labels_of,
    network,
)

CLASSES = 3


def labels(n: int, soft: bool = False) -> Tensor:
    label = labels_of(n, CLASSES, soft=soft)
    assert label is not None
    return label


@pytest.mark.quick
def test_a_network_that_has_learned_nothing_of_classes_draws_as_one_without() -> None:
    """Bitwise: the biases of the images are then that of all."""
    plain, model = network(), network(n_classes=CLASSES)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("condition_weight"):
                weight.zero_()
            else:
                weight.copy_(plain.get_parameter(name))
    x = CachedSampler(model).sample(5, 8, 8, label=labels(5))
    assert torch.equal(x, CachedSampler(plain).sample(5, 8, 8))


@pytest.mark.quick
def test_parts_have_the_labels_of_their_images() -> None:
    model = network(n_classes=CLASSES)
    sampler = CachedSampler(model)
    for label in (2, "each", labels(10)):
        request = Request(10, first_index=5, label=label)
        whole = sampler.draw(request, (4, 4))
        parts = [sampler.draw(part, (4, 4)) for part in request.parts(3)]
        assert torch.equal(torch.cat(parts), whole)
        again = sample_images(model, 10, height=4, width=4, first_index=5, label=label)
        assert torch.equal(again, whole)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (None, ValueError, "label is missing: the model has n_classes=3"),
        (torch.ones(2, 4), ValueError, r"label must have shape \(2, 3\), got \(2, 4\)"),
        (torch.full((2, 3), torch.nan), ValueError, "label must be finite"),
    ],
)
def test_wrong_labels_are_named(label: Any, error: type, message: str) -> None:
    sampler = CachedSampler(network(n_classes=CLASSES))
    with pytest.raises(error, match=message):
        sampler.sample(2, 8, 8, label=label)
    with pytest.raises(ValueError, match="label was given"):
        CachedSampler(network()).sample(2, 8, 8, label=0)


@pytest.mark.quick
def test_the_command_draws_a_class_or_each(tmp_path: Path) -> None:
    """Image i of a class is the same image beside others of its own class and of others."""
    noisy = network(n_classes=CLASSES, n_filters=4)
    denoiser = network(conditioning="concat", n_filters=4, **ATOMS)
    smoothing = dsmooth.GaussianSmoothing(0.5)
    dsmooth.SmoothedPair(noisy, denoiser, smoothing, (8, 8)).save_pretrained(tmp_path / "pair")

    def draw(label: Any, out: str, count: int = 5) -> dict[str, Any]:
        path = tmp_path / out
        options = {"models": (tmp_path / "pair",), "count": count, "out": (path,)}
        cpu = Computing(threads=1, device="cpu")
        sample(Sample(drawing=Drawing(label=label), execution=cpu, **options))
        return dict(np.load(path)) if path.suffix else {}

    each, one = draw("each", "each.npz"), draw(1, "one.npz")
    assert each["label"].tolist() == [0, 1, 2, 0, 1]
    assert one["label"].tolist() == [1] * 5
    same = [bool((a == b).all()) for a, b in zip(each["x"], one["x"], strict=True)]
    assert same == [False, True, False, False, True]
    for count in (2, 5):  # the larger call goes on with the folder
        draw("each", "folder", count)
    shard = np.load(tmp_path / "folder" / "shard_00000.npy")
    assert (shard == each["x"]).all()
    with pytest.raises(ValueError, match="holds another drawing: label each, not 1"):
        draw(1, "folder")
    with pytest.raises(ValueError, match=r"3 classes: give --label 0 .. 2, or --label each"):
        draw(3, "no.npz")
    drawn = draw(None, "prior.npz")
    labels = drawn["label"].tolist()
    assert len(set(labels)) > 1
    for i, label in enumerate(labels):
        assert (draw(label, f"of-{label}.npz")["x"][i] == drawn["x"][i]).all()
