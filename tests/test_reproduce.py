"""`dsmooth reproduce`: the whole path once, again, stopped and resumed, and in a wrong folder."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dsmooth
from dsmooth.commands import reproduce as command
from dsmooth.commands.options import DataOptions, Reproduce
from dsmooth.commands.reproduce import runs_of
from dsmooth.config import TrainConfig
from dsmooth.data import to_float
from dsmooth.data.order import choose_images, epoch_order
from dsmooth.data.published import load_embedded_mnist
from dsmooth.evaluate.comparison import black_share
from dsmooth.evaluate.likelihood import bits_per_dim, score_pair
from dsmooth.experiments import TEST_IMAGES, Report, ReproduceSettings, Stages, choose_evenly
from dsmooth.files import read_json, write_json
from dsmooth.pretrained.log import Start, Step, entry_line
from dsmooth.pretrained.runs import RunFolder
from dsmooth.results import FLOOR
from dsmooth.training.step import TrainState
from dsmooth.work import read_result
from tests.helpers.command_runs import measure_few, save_run
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.networks import tiny_pair
from tests.helpers.report_checks import check_self_contained, without_plots
from tests.helpers.tiny_runs import tiny

IMAGES = 160


def reproduce(out: Path, *runs: TrainConfig, **options: object) -> int:
    return command.reproduce(Reproduce(out=out, **{"count": 9, **options}), runs)


def reported_in(out: Path) -> Report:
    return read_result(out / "results.json", Report)


def tiny_runs(data: Path, images: int = IMAGES, seed: int = 0) -> tuple[TrainConfig, ...]:
    settings = {"data": "folder", "data_dir": str(data), "dropout": 0.0, "seed": seed}
    sizes = {"warmup_images": 0, "evaluations": 2, "evaluation_images": 4}
    counts = {"noisy": images, "denoiser": images, "plain": 32}
    return tuple(tiny(role, images=count, **settings, **sizes) for role, count in counts.items())


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Without the scores of torch-fidelity, whose import takes longer than these tests; probes are
    trained for one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", None)
        measure_few(patch)
        yield


@pytest.fixture(scope="module")
def data(made: Path) -> Path:
    return made / "images"


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the training of the denoiser, and resumed."""
    out, step = tmp_path_factory.mktemp("once") / "out", TrainState.step

    def stop(state: TrainState) -> None:
        step(state)
        if state.config.role == "denoiser":
            signal.raise_signal(signal.SIGINT)

    with without_plots():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainState, "step", stop)
            assert reproduce(out, *tiny_runs(data)) == 128 + signal.SIGINT
        assert (out / "denoiser" / "checkpoint.safetensors").exists()
        assert not RunFolder(out / "denoiser").is_finished()
        assert reproduce(out, *tiny_runs(data)) == 0
    return out


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Run folders of small untrained networks for MNIST."""
    folder = tmp_path_factory.mktemp("given")
    return tuple(save_run(folder / role, role, size=28) for role in ("denoiser", "plain", "noisy"))


@pytest.fixture(scope="module")
def reported(given: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    with without_plots():
        assert reproduce(out, models=given) == 0
    return out


def test_everything_is_there_and_names_no_path(finished: Path, data: Path) -> None:
    for role in ("noisy", "denoiser", "plain"):
        assert RunFolder(finished / role).is_finished()
    for name in ("noisy", "two-step", "single-step", "plain"):
        with np.load(finished / "samples" / f"{name}.npz") as arrays:
            assert arrays["x"].shape == (9, 1, 8, 8)
        with Image.open(finished / "samples" / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture))) > 2
    result = read_json(finished / "results.json")["result"]
    assert str(data) not in json.dumps(result)
    report = reported_in(finished)
    assert report.bits.plain.n_images == min(12, report.test_images)
    assert (report.probes, report.frechet) == (None, None)
    training = report.models["noisy"].training
    assert (training.images, training.data) == (IMAGES, report.data)


def test_other_folders_are_refused_and_left_alone(finished: Path, data: Path, tmp_path) -> None:
    runs = tiny_runs(data, images=128)
    refuses("is of another request: its .*images is", reproduce, finished, *runs)
    (tmp_path / "thesis.tex").write_text("words")
    refuses("has files, and no results.json says", reproduce, tmp_path, *tiny_runs(data))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.quick
def test_runs_share_the_budget() -> None:
    runs = runs_of(Reproduce(budget=10, seed=3))
    assert [config.role for config in runs] == ["noisy", "denoiser", "plain"]
    assert [config.budget for config in runs] == pytest.approx([4, 4, 2])
    assert {(config.seed, config.images) for config in runs} == {(3, None)}
    # A short run has fewer evaluations.
    for budget, evaluations in ((0.1, 1), (2.0, 2), (600.0, 8)):
        runs = runs_of(Reproduce(budget=budget, dataset=DataOptions(data_dir=Path("x"))))
        assert [config.evaluations for config in runs[:2]] == [evaluations] * 2
        assert runs[0].data_dir == "x"
    assert runs_of(Reproduce()) == ()
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        refuses("budget", runs_of, Reproduce(budget=budget))


@pytest.mark.quick
def test_history_forgets_steps_that_a_later_start_took_back(tmp_path: Path) -> None:
    starts = [Start(images, 0.0, 24, "bits") for images in (0, 8)]
    steps = [Step(8 * n, float(n), 1.5, 8.0) for n in (1, 3)]
    entries = [starts[0], *steps, starts[1], Step(16, 1.5, 1.5, 8.0)]
    (tmp_path / "log.jsonl").write_text("".join(map(entry_line, entries)) + '{"event": "st')
    run = RunFolder(tmp_path)
    run.write_config(TrainConfig(images=24), (8, 8))
    kept = run.history()
    assert [entry.images for entry in kept if isinstance(entry, Step)] == [8, 16]
    assert run.seconds() == 2.5


@pytest.mark.quick
def test_given_models_are_measured_and_reported(reported: Path) -> None:
    report = reported_in(reported)
    assert report.embedded
    kinds = {"two-step", "single-step", "plain", TEST_IMAGES, FLOOR}
    assert kinds == report.frechet.distances.keys()
    assert report.frechet.n_reference == report.train_images - 9  # without the floor's
    assert "mnist-classifier" in report.frechet.name
    names = ["noisy", "denoiser", "pixels", "untrained-noisy"]
    assert list(report.probes.accuracy) == names
    request = read_json(reported / "probes.json")["request"]
    assert request["precision"] == "auto"  # float32, as of `dsmooth probe`
    assert {"clean_noise", "drawn_in"} <= read_json(reported / "frechet.json")["request"].keys()
    assert report.receptive_fields.networks["two-streams"].blind_spot == 0
    page = (reported / "report.html").read_text(encoding="utf-8")
    check_self_contained(page)
    for title in ("Linear probes", "Receptive fields", "Fréchet distance"):
        assert f"<h2>{title}</h2>" in page
    assert str(reported) not in (reported / "results.json").read_text()


def test_numbers_are_of_their_images_and_seed(given: tuple[Path, ...], tmp_path: Path) -> None:
    models, images = dsmooth.load(*given), load_embedded_mnist("test")
    for seed, first in ((7, 0), (7, 4), (8, 4)):
        data, folder = images.part(slice(first, first + 6)), tmp_path / f"{seed}-{first}"
        one = Stages(folder, models, images, data, ReproduceSettings(scored_images=4, seed=seed))
        pair = bits_per_dim(score_pair(models.pair, data.part(slice(4)), seed=seed))
        assert one.bits_per_dim().pair.headline == pair
        x = to_float(choose_images(images.part(slice(6)), 3))
        distances = one.compare({"plain": x}).distances
        same = distances["plain"].value == distances[TEST_IMAGES].value
        assert same == (first == 0)
    few = replace(one, folder=tmp_path / "few", train_set=images.part(slice(4)))
    found = few.compare({"plain": torch.cat([x, x.new_full((1, 1, 28, 28), torch.inf)])})
    counts = {name: distance.n_images for name, distance in found.distances.items()}
    assert (counts, found.n_reference) == ({"plain": 3, TEST_IMAGES: 3, FLOOR: 2}, 2)
    bare = replace(one, test_set=replace(data, labels=None), folder=tmp_path / "bare")
    assert bare.report("", {}, {}).probes is None


@pytest.mark.quick
def test_the_floor_has_a_fixed_share_of_each_class() -> None:
    labels = torch.tensor([0, 1, 4]).repeat_interleave(torch.tensor([100, 200, 700]))
    order = epoch_order(1000, 0, 0)
    assert torch.equal(choose_evenly(torch.zeros(1000), 50, equal=True), order[:50])
    for count in (10, 31, 200):
        for equal, shares in ((True, [1 / 3] * 3), (False, [0.1, 0.2, 0.7])):
            numbers = choose_evenly(labels, count, equal=equal)
            assert len(numbers) == len(numbers.unique()) == count
            counts = labels[numbers].bincount()[[0, 1, 4]]
            assert (counts - count * torch.tensor(shares)).abs().max() <= 1


def test_samples_of_other_weights_are_not_reported(given, reported, tmp_path: Path) -> None:
    again = shutil.copytree(reported, tmp_path / "again")
    samples = read_json(again / "samples.json")
    samples["request"]["settings"]["weights_sha256"]["noisy"] = "0" * 64
    write_json(again / "samples.json", samples)
    words = r"samples\.json is of another request: its settings.weights_sha256.noisy is '0"
    refuses(words, reproduce, again, models=given)


def test_models_with_classes(tmp_path: Path, no_plots: None) -> None:
    for role in ("noisy", "denoiser", "plain"):
        save_run(tmp_path / role, role, size=28, n_classes=10)
    assert reproduce(tmp_path / "out", models=(tmp_path, tmp_path / "plain")) == 0
    accuracy = reported_in(tmp_path / "out").probes.accuracy
    assert {"noisy", "denoiser"} <= accuracy.keys()  # by a label of zeros
    x = np.load(tmp_path / "out" / "samples" / "plain.npz")
    assert x["label"].tolist() == list(range(9))


def test_other_noise_has_no_single_step(tmp_path: Path) -> None:
    pair, data = tiny_pair("continuous"), random_dataset(4)
    pair.smoothing = dsmooth.LaplaceSmoothing(0.5)
    dsmooth.save(pair, tmp_path / "pair")
    stages = Stages(
        tmp_path, dsmooth.load(tmp_path / "pair"), data, data, ReproduceSettings(count=2)
    )
    samples, held_out = stages.pictures()
    assert [*samples] == ["noisy", "two-step"]
    assert [*held_out] == ["held-out", "held-out-noisy", "held-out-two-step"]


def test_black_pixels_are_black_in_every_colour() -> None:
    red_and_black = torch.tensor([[255, 0], [0, 0], [0, 0]]).byte().view(1, 3, 1, 2)
    assert black_share(red_and_black) == 0.5
