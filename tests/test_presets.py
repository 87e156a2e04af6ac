"""Every preset builds and trains a step; settings are what JSON has."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.config import TrainConfig
from dsmooth.fields import check_one_of
from dsmooth.files import structured
from dsmooth.presets import PRESETS, preset, with_settings
from dsmooth.training.evaluation import evaluate
from dsmooth.training.step import TrainState
from tests.helpers.data_makers import random_dataset
from tests.helpers.tiny_runs import ROLES


@pytest.mark.quick
def test_a_budget_takes_the_place_of_the_images() -> None:
    """Both together are refused."""
    assert preset("mnist", "noisy").images == 3_000_000
    timed = preset("mnist", "noisy", budget=2.0)
    assert timed.images is None
    # As of the config.json of a run.
    assert with_settings(replace(timed, images=64), {"images": 8}).budget is None
    with pytest.raises(ValueError, match="`images` and `budget` both say how long the run is"):
        preset("mnist", "noisy", budget=2.0, images=64)


@pytest.mark.quick
def test_an_error_names_few_of_many() -> None:
    names = [f"cluster {number}" for number in range(30)]
    for name in ("cluster 99", "dog"):
        with pytest.raises(ValueError, match="must be one of 30 names, such as cluster ") as error:
            check_one_of("label", name, names)
        assert str(error.value).count("cluster") <= 6


@pytest.mark.quick
def test_fields_of_a_model_that_is_given_are_replaced() -> None:
    own = dsmooth.ModelConfig(n_filters=8, n_mix=3)
    assert preset("mnist", "noisy", model=own, n_filters=6, likelihood="gaussian").model == replace(
        own, n_filters=6, likelihood="gaussian"
    )
    for settings in ({}, {"n_filters": 6}):
        with pytest.raises(ValueError, match=r"`model` must be a ModelConfig, got {}"):
            preset("mnist", "noisy", model={}, **settings)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("betas", [0.25, 0.5], (0.25, 0.5)),
        ("betas", np.array([0.25, 0.5], np.float32), (0.25, 0.5)),
        ("flip", np.asarray(True)[()], True),
        ("images", np.asarray(20_000)[()], 20_000),
        ("images", torch.tensor(20_000), 20_000),
        ("learning_rate", np.asarray(0.25)[()], 0.25),
        ("data_dir", Path("a"), "a"),
    ],
)
def test_settings_are_what_json_has(name: str, given: object, value: object) -> None:
    """Lists become tuples, numpy's numbers Python's."""
    made, expected = (replace(TrainConfig(), **{name: x}) for x in (given, value))
    assert (made, hash(made)) == (expected, hash(expected))
    assert json.dumps(asdict(made)) == json.dumps(asdict(expected))
    assert structured(asdict(made), TrainConfig, "") == made


@pytest.mark.grid
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_a_step(name: str, role: str) -> None:
    small = {"n_filters": 4, "n_resnet": 1, "n_mix": 2, "context_layers": 1}
    config = preset(name, role, **small, images=64, batch_size=8, precision="float32")
    data = random_dataset(16, channels=config.model.image_channels)
    state = TrainState(config, data, torch.device("cpu"))
    state.step()
    (reading,) = state.results()
    assert math.isfinite(reading.loss)
    assert reading.gradient_norm > 0
    assert (state.average is None) == (config.ema == 0)
    assert math.isfinite(evaluate(state, data))


def test_presets_build_at_full_size() -> None:
    for name, role in itertools.product(PRESETS, ROLES):
        with torch.device("meta"):
            model = dsmooth.PixelCNNpp(preset(name, role).model)
        assert sum(p.numel() for p in model.parameters()) > 100_000
