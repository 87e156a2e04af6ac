"""The controls of the packaged models' probes, which the package brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsmooth.commands.options import Reproduce
from dsmooth.commands.reproduce import load_requested_models, make_stages
from dsmooth.evaluate.probe import PIXELS, Probing
from dsmooth.fields import difference
from dsmooth.record import read_parts
from dsmooth.reproduce import CONTROLS
from dsmooth.results import BlockScores


def packaged_probing() -> Probing:
    options = Reproduce()
    return make_stages(options, *load_requested_models(options, torch.device("cpu"))).probing()


def test_the_controls_are_of_what_reproduce_measures() -> None:
    """Of the packaged networks' shape and noise, and of the embedded images, by their digests."""
    request, known = read_parts(CONTROLS, BlockScores)
    probing = packaged_probing()
    assert not difference(request, probing.controls_request())
    assert known.keys() == {PIXELS, "untrained-noisy"}
    other = replace(probing, settings=replace(probing.settings, seed=1))
    assert difference(request, other.controls_request())


@pytest.mark.full
def test_the_controls_are_what_their_networks_give(tmp_path: Path) -> None:
    """To within two images: another processor rounds otherwise."""
    _, known = read_parts(CONTROLS, BlockScores)
    probing = packaged_probing()
    subjects = {name: probing.subjects[name] for name in known}
    own = replace(probing, subjects=subjects, folder=tmp_path, precision="float32")
    measured = own.result(tmp_path / "probes.json").accuracy
    images = len(probing.splits["test"])
    for name, blocks in known.items():
        assert measured[name].keys() == blocks.keys()
        for block, score in blocks.items():
            assert abs(measured[name][block].accuracy - score.accuracy) * images <= 2.001
            assert measured[name][block].features == score.features
