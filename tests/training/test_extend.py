"""Runs that begin with the weights of others, are extended, or continue with changed settings."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth.config import OWN, TrainConfig
from dsmooth.data import load_dataset
from dsmooth.files import read_tensors
from dsmooth.runlog import Change, HeldOut, LogEntry, Restart, Step, Unchecked
from dsmooth.runs import RunFolder
from dsmooth.training import train
from dsmooth.training.beginning import check_initial, find_initial
from dsmooth.training.checkpoint import Checkpoint, differences
from dsmooth.training.resolve import resume_settings
from dsmooth.training.step import TrainState, scheduled
from tests.helpers.command_runs import run as call
from tests.helpers.data_makers import random_bytes, random_dataset, refuses, write_images
from tests.helpers.tiny_runs import assert_same_end, tiny, train_until

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_runs")


def entries(folder: Path, event: type[LogEntry], field: str) -> list[Any]:
    log = RunFolder(folder).read_log()
    return [getattr(entry, field) for entry in log if isinstance(entry, event)]


@pytest.mark.parametrize("schedule", ["cosine", "cooldown"])
def test_an_extended_schedule_is_a_new_one_over_the_added_images(schedule: Any) -> None:
    whole = tiny(images=64, schedule=schedule)
    later = replace(whole, images=40 + 64, schedule_from=40)
    for seen in range(0, 65, 8):
        assert scheduled(1.0, later, seen + 40, 0) == scheduled(1.0, whole, seen, 0)


def test_a_finished_run_is_extended(tmp_path) -> None:
    """Its weights, moments and order continue, its schedule restarts; and it can be stopped."""
    one, two = tmp_path / "one", tmp_path / "two"
    config = tiny(images=24)
    longer = replace(config, images=56, evaluations=2)
    for folder in (one, two):
        train(config, folder)
    train(longer, one, resume=True)
    assert RunFolder(one).read_config()[0] == replace(longer, schedule_from=24)
    text = "extended from 24 to 56 images, its schedule restarted"
    assert entries(one, Restart, "after") == [56]
    assert RunFolder(one).record().notes == (text,)
    assert entries(one, HeldOut, "images") == [24, 40, 56]
    # Interrupted on the way, it continues to the same end.
    train_until(40, longer, two, resume=True)
    RunFolder(two).write_config(config, (8, 8))  # killed after its checkpoint
    assert train(longer, two, resume=True).images_seen == 56
    assert RunFolder(two).record().notes == (text,)
    assert_same_end(one, two)
    train(replace(longer, images=72), one, resume=True)  # and once more
    assert RunFolder(one).read_config()[0].schedule_from == 56
    refuses("`images` must be at least 72, which .* has seen", train, config, one, resume=True)


def test_a_new_run_with_the_settings_of_an_extended_one_begins_its_schedule(tmp_path: Path) -> None:
    config, path = tiny(images=24), tmp_path / "given.json"
    extended = replace(config, schedule_from=16)
    train(config, tmp_path / "one")
    train(extended, tmp_path / "two")
    assert_same_end(tmp_path / "one", tmp_path / "two")
    path.write_text(json.dumps(asdict(extended)))
    out = ["--out", str(tmp_path / "three"), "--config", str(path)]
    assert call("train", "noisy", *out, "--images", "16") == 0  # fewer than schedule_from
    assert RunFolder(tmp_path / "three").read_config()[0] == replace(config, images=16)


def test_force_moves_the_end_of_an_unfinished_run(tmp_path, caplog) -> None:
    """Before a cooldown the rates are the same: it is the run of its last length."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    config = tiny(images=40, schedule="cooldown", cooldown=0.4)
    train_until(24, config, folder)
    longer = replace(config, images=80)
    message = "`images` can be 80 instead of 40 once the run has finished; .* 24; .* `force=True`"
    refuses(message, train, longer, folder, resume=True)
    train(longer, folder, resume=True, force=True)
    assert RunFolder(folder).record().notes == ("images 40 up to 24 images, 80 from then on",)
    caplog.set_level("INFO", "dsmooth")
    train(longer, whole, resume=True)
    assert f"noisy: no run in {whole} to resume: starting a new one" in caplog.text
    assert_same_end(whole, folder)
    assert RunFolder(folder).read_config()[0] == longer


GAUSSIAN = replace(tiny(), model=replace(tiny().model, likelihood="gaussian"))
ONCE = "^`budget` is for a new run, and run is one of 40 images: to extend it, set `images`$"
ANOTHER = "^run holds another run: its"


def resumed(
    stored: TrainConfig, change: dict[str, object], seen: int = 32, *, force: bool = False
) -> TrainConfig:
    """The settings of a run that has seen images, resumed with others."""
    checkpoint = Checkpoint(Path("run/x"), {}, stored, seen, seen // 8, "")
    return resume_settings(replace(stored, **change), checkpoint, force=force)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("stored", "change", "message"),
    [
        (tiny(), {"images": 24}, "^`images` must be at least 32, which run has seen$"),
        (tiny(budget=2.0), {"budget": 4.0, "images": None}, ONCE),
        # The noise that a likelihood contains stays, and weights of another network are none.
        (GAUSSIAN, {"scale": 0.25}, rf"{ANOTHER} scale is 0\.5, not 0\.25$"),
        (tiny(), {"model": replace(tiny().model, n_filters=6)}, f"{ANOTHER} model.n_filters is 4"),
        (tiny(), {"init": "other"}, f"{ANOTHER} init is None, not other$"),
        (tiny(), {"ema": 0.0}, f"{ANOTHER} ema is 0.9995, not 0.0$"),
        (tiny(), {"optimizer": "muon"}, f"{ANOTHER} optimizer is adam, not muon$"),
        (tiny(), {"seed": 5}, f"{ANOTHER} seed is 0, not 5; .* set `force=True`$"),
        (tiny(), {"data": OWN}, f"{ANOTHER} data is mnist, not own; .* `force=True`"),
        (tiny(), {"images": 64}, "^`images` can be 64 instead of 40 .* bend its .* `force=True`$"),
        (tiny(), {"images": 32}, "^`images` can be 32 instead of 40 .* bend its .* `force=True`$"),
        (tiny(), {"betas": (0.5, 0.9), "batch_size": 4}, "batch_size is 8, not 4; .* `force=True`"),
        (
            tiny(),
            {"model": tiny(dropout=0.0).model},
            "dropout is 0.3, not 0.0; .* `force=True`",
        ),
    ],
)
def test_what_force_and_no_force_makes_of_a_checkpoint(stored, change, message) -> None:
    refuses(message, resumed, stored, change)
    if "force=True" in message:
        assert resumed(stored, change, force=True) == replace(stored, **change)
    else:
        refuses(message, resumed, stored, change, force=True)


@pytest.mark.quick
def test_what_is_left_open_is_the_checkpoints() -> None:
    stored = tiny("plain", budget=2.0, n_classes=3, evaluations=5)
    open_model = replace(stored.model, classes=None)
    for change in (
        {"images": None, "evaluations": 8},
        {"budget": None},
        {"precision": "auto", "model": open_model},
    ):
        assert resumed(stored, change, 0) == stored


def test_settings_and_checkpoint_may_be_of_two_moments_of_a_run_with_a_budget() -> None:
    """After a kill, or where the newest checkpoint is damaged."""
    first = tiny(budget=2.0, images=400)
    second = replace(first, images=320, earlier_images=((80, 400),))
    third = replace(first, images=480, earlier_images=((80, 400), (160, 320)))
    for stored, other in itertools.permutations((first, second, third), 2):
        assert resumed(stored, vars(other), 40) == stored
    more = {"images": 800}
    refuses("`images` can be 800 instead of 320 once", resumed, second, more, 40)
    assert resumed(second, more, 320) == replace(second, schedule_from=320, **more)


@pytest.mark.parametrize("lost", [False, True])
def test_where_nothing_is_left_to_train_no_setting_changes(tmp_path, lost: bool, caplog) -> None:
    """Neither are there notes of one: no weights have seen it."""
    caplog.set_level("INFO", "dsmooth")
    config, run = tiny(images=20), RunFolder(tmp_path)
    train(config, run.path)
    before, weights = read_tensors(run.checkpoint)[1]["settings"], run.weights.read_bytes()
    if lost:
        run.weights.unlink()  # an evaluation writes them again
    for images in (20, 24):  # the last batch is a whole one
        caplog.clear()
        other = replace(config, images=images, scale=0.25)
        assert train(other, run.path, resume=True, force=True).images_seen == 24
        assert "nothing is left to train" in caplog.text
    assert train(replace(config, images=24), run.path, resume=True).images_seen == 24
    assert run.read_config()[0] == config
    assert not run.record().notes
    assert run.weights.read_bytes() == weights
    assert read_tensors(run.checkpoint)[1]["settings"] == before


def test_a_finished_run_gets_no_record_of_its_images(tmp_path) -> None:
    changed = replace(random_dataset(20), transform=torch.clone)
    data = {"dataset": (changed, random_dataset(4))}
    config = tiny(images=16, data=OWN)
    train(config, tmp_path, **data)
    others = {"dataset": (random_dataset(24), random_dataset(4))}
    for images in (data, others):  # a record says that the transform is unchecked, or of a change
        train(config, tmp_path, resume=True, force=True, **images)
    assert not entries(tmp_path, Unchecked, "what")
    assert not entries(tmp_path, Change, "setting")


def test_settings_change_with_the_first_checkpoint(tmp_path) -> None:
    """A run that is killed before it is the run with the settings of its weights."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    stopped, changed = (
        {"dataset": (replace(random_dataset(20), transform=visit), random_dataset(4))}
        for visit in (killed, torch.clone)
    )
    config, run = tiny(images=16, data=OWN, data_init=False), RunFolder(tmp_path / "run")
    other = replace(config, images=48, seed=5, schedule="exponential", learning_rate=1e-4)
    other = replace(other, warmup_images=0, evaluations=2)
    train(config, run.path, **changed)
    # In the first batch, and in the first evaluation, after its checkpoint.
    for killed_by in (stopped, {**changed, "on_evaluation": killed}):
        assert run.read_config()[0] == config
        with pytest.raises(KeyboardInterrupt):
            train(other, run.path, resume=True, force=True, **killed_by)
    run.write_config(config, (8, 8))
    words = r"another run: its learning_rate is 0\.0001, not 0\.002; .* `force"
    refuses(words, train, replace(config, images=48), run.path, resume=True, **changed)
    train(other, run.path, resume=True, **changed)  # now they are its settings
    assert run.read_config()[0] == replace(other, schedule_from=16)
    assert entries(run.path, Step, "learning_rate")[-1] == pytest.approx(1e-4)
    notes = run.record().notes
    assert notes[0] == "extended from 16 to 48 images, its schedule restarted"
    assert "seed 0 up to 16 images, 5 from then on" in notes


def test_a_run_begins_with_weights(tmp_path: Path) -> None:
    """The averaged ones of a run or a pair, a new optimiser, image 0."""
    for role in ("noisy", "denoiser"):
        train(tiny(role, images=16), tmp_path / role)
    pair = dsmooth.SmoothedPair.from_runs(tmp_path / "noisy", tmp_path / "denoiser")
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
    config = tiny(images=16, scale=0.3)
    first, second = tmp_path / "first", tmp_path / "second"
    train(config, first)
    options = "--images 16 --batch-size 8 --evaluations 1 --evaluation-images 4"
    begin = ["train", "noisy", "--init", str(first)]
    assert call(*begin, "--out", str(second), *options.split()) == 0
    stored, _ = RunFolder(second).read_config()
    assert (stored.model, stored.scale, stored.init) == (config.model, 0.3, str(first))
    assert "--init RUN" in RunFolder(second).record().command
    assert call(*begin, "--out", str(tmp_path / "x"), "--n-filters", "6", "--images", "16") == 1
    assert "has n_filters 4, not 6: set --n-filters 4" in capsys.readouterr().err


def test_the_data_decide_the_classes_of_a_run_from_weights(tmp_path) -> None:
    """Weights with classes begin a run without any."""
    data = replace(random_dataset(8, labels=torch.arange(8) % 2), class_names=("a", "b"))
    config = tiny(classes=True, label_dropout=0.25, images=8)
    train(config, tmp_path / "first", dataset=(data, data))
    options = "--images 16 --batch-size 8 --evaluations 1 --evaluation-images 4"
    init = ["--init", str(tmp_path / "first")]
    assert call("train", "noisy", *init, "--out", str(tmp_path / "second"), *options.split()) == 0
    assert RunFolder(tmp_path / "second").read_config()[0].model == tiny().model


def test_the_same_command_resumes_a_run_that_counts_its_classes(tmp_path, capsys) -> None:
    """And --config begins a run with other classes, or with none."""
    folder, run, again = (str(tmp_path / name) for name in ("images", "run", "again"))
    pixels = random_bytes((20, 8, 8))
    write_images(Path(folder), {f"{'ab'[i % 2]}/{i}.png": x for i, x in enumerate(pixels)})
    words = "--n-filters 4 --n-mix 2 --batch-size 8 --evaluations 1 --evaluation-images 4"
    same = ["train", "plain", folder, "--classes", "--out", run, *words.split()]
    assert call(*same, "--images", "8") == 0
    assert call(*same, "--images", "16", "--resume") == 0
    assert entries(Path(run), HeldOut, "images") == [8, 16]
    assert RunFolder(run).read_config()[0].model.classes.names == ("a", "b")
    config = ["train", "plain", "--config", f"{run}/config.json", "--out", again]
    assert call(*config, "--no-classes") == 0
    assert RunFolder(again).read_config()[0].model.n_classes == 0
    capsys.readouterr()
    assert call(*config[:-3], "--n-classes", "3", "--out", f"{again}-3") == 1
    assert "--n-classes must be 2, for the classes a, b" in capsys.readouterr().err


@pytest.mark.quick
def test_settings_that_the_network_does_not_use_fit_whatever_they_are() -> None:
    """To begin from weights, and to continue."""
    noisy = tiny()
    other = replace(noisy, model=replace(noisy.model, context_layers=9, smoothing_scale=0.7))
    check_initial(noisy.model, other.model, "other")
    assert differences(noisy, other) == {}
    denoiser = tiny("denoiser")
    more = replace(denoiser, model=replace(denoiser.model, context_layers=9))
    assert differences(denoiser, more) == {"model.context_layers": (1, 9)}
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
        assert not Path("new").exists()
