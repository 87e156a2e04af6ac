"""Runs that begin with the weights of others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsmooth
from dsmooth.data import load_dataset
from dsmooth.files import read_tensors
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import train
from dsmooth.training.settings import check_initial, find_initial
from dsmooth.training.step import TrainState
from tests.helpers.command_runs import run as call
from tests.helpers.data_makers import random_bytes, random_dataset, refuses, write_images
from tests.helpers.tiny_runs import assert_same_end, tiny, train_until

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_runs")


def test_a_run_begins_with_weights(tmp_path: Path) -> None:
    """The averaged ones of a run or a pair, a new optimiser, image 0."""
    for role in ("noisy", "denoiser"):
        train(tiny(role, images=16), tmp_path / role)
    pair = dsmooth.load(tmp_path / "noisy", tmp_path / "denoiser").pair
    pair.save_pretrained(tmp_path / "pair")
    for role, place in itertools.product(("noisy", "denoiser"), ("run", "pair", "runs")):
        source = {"run": tmp_path / role, "pair": tmp_path / "pair", "runs": tmp_path}[place]
        config = replace(tiny(role, seed=9), init=str(source))
        initial = find_initial(str(source), role).networks[role]
        state = TrainState(config, load_dataset("mnist", "train"), CPU, initial)
        expected, _ = read_tensors(RunFolder(tmp_path / role).weights)
        for network in (state.model, state.averaged):
            state_dict = network.state_dict()
            assert all(torch.equal(state_dict[key], value) for key, value in expected.items())
        assert state.images_seen == 0
        assert not any(moment.any() for moment in state.optimizer.tensors().values())


def test_a_run_from_weights_resumes_without_them(tmp_path) -> None:
    train(tiny(images=16), tmp_path / "first")
    config = replace(tiny(images=24), init=str(tmp_path / "first"))
    train(config, tmp_path / "whole")
    train_until(16, config, tmp_path / "parts")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    train(config, tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_command_takes_network_and_smoothing_of_the_weights(tmp_path, capsys) -> None:
    """Weights with classes begin a run without any."""
    config, labels = tiny(images=16, scale=0.3), torch.arange(8) % 2
    data = replace(random_dataset(8, labels=labels), class_names=("a", "b"))
    first, second = tmp_path / "first", tmp_path / "second"
    train(replace(config, classes=True, label_dropout=0.25), first, dataset=(data, data))
    options = "--images 16 --batch-size 8 --set evaluations=1 --set evaluation_images=4"
    begin = ["train", "noisy", "--init", str(first)]
    assert call(*begin, "--out", str(second), *options.split()) == 0
    stored, _ = RunFolder(second).read_config()
    assert (stored.model, stored.scale, stored.init) == (config.model, 0.3, str(first))
    assert call(*begin, "--out", str(tmp_path / "x"), "--n-filters", "6", "--images", "16") == 1
    assert "has n_filters 4, not 6: set --n-filters 4" in capsys.readouterr().err


def test_the_same_command_resumes_a_run_with_classes(tmp_path: Path) -> None:
    """And --config begins a run with other classes, or with none."""
    pixels = random_bytes((20, 8, 8))
    for folder, names in (("images", "ab"), ("others", "cd")):
        pictures = {f"{names[i % 2]}/{i}.png": x for i, x in enumerate(pixels)}
        write_images(tmp_path / folder, pictures)
    run, again, without = (str(tmp_path / name) for name in ("run", "again", "without"))
    words = "--n-filters 4 --set n_mix=2 --batch-size 8 --set evaluations=1 --images 16"
    same = ["train", "plain", str(tmp_path / "images"), "--classes", "--out", run, *words.split()]
    assert call(*same) == call(*same, "--resume") == 0
    assert RunFolder(run).read_config()[0].model.classes.names == ("a", "b")
    config = ["train", "plain", str(tmp_path / "others"), "--config", f"{run}/config.json"]
    assert call(*config, "--out", again) == 0
    assert RunFolder(again).read_config()[0].model.classes.names == ("c", "d")
    assert call(*config, "--out", without, "--set", "classes=false") == 0
    assert RunFolder(without).read_config()[0].model.classes is None


@pytest.mark.quick
def test_settings_that_the_network_does_not_use_fit_whatever_they_are() -> None:
    noisy = tiny()
    other = replace(noisy, model=replace(noisy.model, context_layers=9, smoothing_scale=0.7))
    check_initial(noisy.model, other.model, "other")
    denoiser = tiny("denoiser")
    more = replace(denoiser, model=replace(denoiser.model, context_layers=9))
    with pytest.raises(ValueError, match="has context_layers 9, not 1: set `context_layers=9`"):
        check_initial(denoiser.model, more.model, "more")


def test_weights_that_are_not_there(place: Path) -> None:
    for source, role, message in (
        ("nothing", "noisy", "there is no nothing"),
        ("noisy", "denoiser", "noisy has a noisy model, not a denoiser one to begin with"),
        ("pair", "plain", "pair has a noisy and a denoiser model, not a plain one"),
    ):
        errors = (ValueError, FileNotFoundError)
        refuses(message, train, replace(tiny(role), init=source), "new", error=errors)
        assert not Path("new/config.json").exists()
