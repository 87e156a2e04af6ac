"""Packaged models: found by name, small, and with a card whose numbers are those of the weights."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dsmooth.config import ProbeSettings
from dsmooth.data import load_dataset
from dsmooth.models import load_models
from dsmooth.pair import SmoothedPair
from dsmooth.pretrained import DEFAULT, find, is_model, names, resolve
from dsmooth.reproduce.card import (
    CardOptions,
    limit_of_distances,
    measure_classes,
    measure_samples,
    measure_slice,
    render_card,
    render_summary,
    write_card,
)
from dsmooth.reproduce.stages import Sizes
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import run, save_run

README = Path(__file__).parents[1] / "README.md"
TOOL = Path(__file__).parents[1] / "tools" / "pack_pretrained.py"
CARDS = (DEFAULT, "mnist-classes")
LARGEST = 10e6  # bytes of all packaged models
PROBES = ProbeSettings(train_images=20, test_images=10, epochs=1, pooling="mean")


def tiny_models(
    folder: Path, roles: Sequence[str] = ("noisy", "denoiser", "plain"), **settings: object
) -> Path:
    """Runs of untrained models of digits, as training leaves them."""
    folder.mkdir()
    for role in roles:
        log = RunFolder(save_run(folder / role, role, size=28, **settings)).log
        entries = (
            {"event": "start", "images": 0, "seconds": 0.0, "total": 1, "loss": "bits/dim"},
            {"event": "evaluation", "images": 1, "seconds": 1.0, "bits_per_dim": 8.0},
            {"event": "end", "images": 1, "seconds": 1.0},
        )
        log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.mark.skipif(not TOOL.exists(), reason="the tools are not beside the tests")
def test_packaged_runs_are_told_with_those_they_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run by its settings and log, of all images, with a note on what changed."""
    before = tiny_models(tmp_path / "before")
    runs = tiny_models(tmp_path / "runs")
    for role in ("noisy", "denoiser", "plain"):
        config, size = RunFolder(runs / role).read_config()
        config = replace(config, init="mnist", batch_size=8, data_dir="a/folder")
        RunFolder(runs / role).write_config(config, size)
    target = tmp_path / "packed"
    tool = runpy.run_path(str(TOOL))
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(runs), str(target)])
    with pytest.raises((ValueError, SystemExit), match="began with the weights mnist: name BEFORE"):
        tool["main"]()
    sys.argv.append(str(before))
    for _ in range(2):  # as often as one likes
        tool["main"]()
        run = RunFolder(target / "denoiser")
        config = run.read_config()[0]
        assert (config.images, config.schedule_from) == (2, 1)
        assert (config.init, config.data_dir) == (None, None)
        assert run.is_finished()
        entries = [(entry["event"], entry["images"]) for entry in run.history()]
        assert entries[:3] == [("start", 0), ("evaluation", 1), ("start", 1)]
        assert entries[3:] == [("note", 1), ("evaluation", 2), ("end", 2)]
        assert run.origin().seconds == 2
        note = "up to 1 images batch_size 16; then the optimizer began again"
        assert run.origin().notes == (note,)
    saved = load_file(run.weights)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    theirs = load_file(RunFolder(runs / "denoiser").weights)
    assert all(torch.equal(saved[name], tensor.half()) for name, tensor in theirs.items())


def test_a_pair_by_its_name(tmp_path: Path) -> None:
    """The name stands for both runs, and is the default of the command."""
    assert DEFAULT in names()
    folder = find(DEFAULT)
    x = SmoothedPair.from_pretrained(DEFAULT).sample(2, seed=0)
    assert x.shape == (2, 1, 28, 28)
    assert torch.equal(SmoothedPair.from_pretrained(folder).sample(2, seed=0), x)
    assert run("sample", "-n", "2", "--device", "cpu", "--out", str(tmp_path / "x.npz")) == 0
    assert np.array_equal(np.load(tmp_path / "x.npz")["x"], x.numpy())
    own = [network.folder for network in resolve(DEFAULT)]
    assert own == [folder / "noisy", folder / "denoiser"]
    assert is_model(Path(DEFAULT))
    assert not is_model(Path("no-such-models"))
    with_plain = load_models([Path(DEFAULT), folder / "plain"])
    assert set(with_plain.networks) == {"noisy", "denoiser", "plain"}
    with pytest.raises(FileNotFoundError, match=rf"no no-such-models.*it has .*{DEFAULT}"):
        SmoothedPair.from_pretrained("no-such-models")


def test_networks_go_before_a_name_and_other_folders_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find(DEFAULT)
    (tmp_path / DEFAULT).mkdir()  # as data may lie there
    assert find(DEFAULT) == packaged
    (tmp_path / DEFAULT).rmdir()
    save_run(tmp_path / DEFAULT, "plain")
    assert find(DEFAULT) == Path(DEFAULT)


def test_packaged_models_are_small_and_know_no_path() -> None:
    files = [path for name in names() for path in find(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    for path in files:
        if path.suffix == ".json":
            assert json.loads(path.read_text()).get("data_dir") is None


@pytest.mark.parametrize("name", names())
def test_the_card_is_of_these_weights(name: str) -> None:
    folder = find(name)
    card = json.loads((folder / "card.json").read_text())
    assert (folder / "README.md").read_text() == render_card(card)
    models = load_models([folder, *(path for path in [folder / "plain"] if path.exists())])
    assert models.digests() == card["weights_sha256"]
    again = measure_slice(models, card["seed"])
    assert again == pytest.approx(card["slice"], abs=1e-4)


@pytest.mark.parametrize("name", names())
def test_the_command_of_a_card_measures_its_numbers(name: str) -> None:
    card = json.loads((find(name) / "card.json").read_text())
    command = re.search(r"`python -m dsmooth.reproduce.card (.*?)`", render_card(card))
    assert command is not None
    options = tyro.cli(CardOptions, args=command[1].split())
    bits, samples = card["bits_per_dim"]["asked"], card["samples"]
    asked = (options.n_noise, options.test_images, options.seed, options.samples)
    assert asked == (bits["n_noise"], bits["n_images"], card["seed"], samples["asked"]["samples"])
    assert list(options.frechet_counts) == samples["asked"]["counts"]
    assert str(options.folder) == name
    if "classes" in card:
        assert options.guidance == samples.get("guidance", 0)


def cards() -> tuple[Any, Any]:
    card, told = (json.loads((find(name) / "card.json").read_text()) for name in CARDS)
    return card, told


@pytest.mark.skipif(not README.exists(), reason="the README is not here: tests of an installation")
def test_readme_has_the_numbers_of_the_cards() -> None:
    summary = render_summary(*cards()).strip()
    assert summary in README.read_text()
    # Its sentences state no number, so they are true of other weights too.
    assert not re.search(r"\d", summary.rpartition("|\n")[2])


def test_the_bound_of_a_pair_that_is_told_pays_for_the_label() -> None:
    card, told = cards()
    bound = told["bits_per_dim"]["pair"]["conventions"][0]["value"] + math.log2(10) / 784
    assert f"≤ {bound:.3f} ±" in render_summary(card, told)


def test_sentences_of_a_card_are_of_its_numbers() -> None:
    card, told = cards()
    sentences = (
        "the pair had more compute",
        "nearer to the data than the plain model's",
        "as near to the data as other images of it",
    )
    assert all(sentence in render_summary(card, told) for sentence in sentences)
    assert "The plain model and an untrained" in render_card(card)
    del card["probes"]["clean"]["accuracy"]["plain"]
    assert "The plain model and an untrained" not in render_card(card)
    card["runs"]["plain"]["training_seconds"] *= 3
    of = card["samples"]["of"]
    of["plain"], of["two-step"] = of["two-step"], of["plain"]
    told["samples"]["of"]["two-step"] = of["single-step"]
    assert not any(sentence in render_summary(card, told) for sentence in sentences)


@pytest.mark.long
def test_a_card_is_measured_and_goes_on(tmp_path: Path) -> None:
    folder = tiny_models(tmp_path / "models")
    train_set, test_set = (
        load_dataset("mnist", split).part(slice(60)) for split in ("train", "test")
    )
    longer = tiny_models(tmp_path / "longer", ("plain",)) / "plain"
    options = CardOptions("", folder, tmp_path / "work", 24, 20, 2, (12, 24), PROBES, longer)
    card = write_card(options, train_set, test_set)
    assert card["bits_per_dim"]["longer"]["run"]["images"] == 1
    assert json.loads(json.dumps(card)) == json.loads((folder / "card.json").read_text())
    text = (folder / "README.md").read_text()
    pair = card["bits_per_dim"]["pair"]
    assert f"| pair: discrete bound * | {pair['value']:.4f} |" in text
    assert f"{card['samples']['of']['plain']['distance']['24']:.3f}" in text
    assert (folder / "samples.png").is_file()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert write_card(options, train_set, test_set) == card
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    # Other numbers of images are measured again.
    changed = write_card(replace(options, test_images=10), train_set, test_set)
    assert changed["bits_per_dim"]["pair"]["n_images"] == 10
    assert changed["samples"] == card["samples"]
    RunFolder(folder / "noisy").log.unlink()
    with pytest.raises(ValueError, match="noisy is not the folder of a finished run"):
        write_card(options, train_set, test_set)


@pytest.mark.long
def test_a_card_of_a_pair_with_classes(tmp_path: Path) -> None:
    """It has no plain model and no probes; the bounds of its classes sum to that without."""
    folder = tiny_models(tmp_path / "models", ("noisy", "denoiser"), n_classes=10)
    train_set, test_set = (
        load_dataset("mnist", split).part(slice(60)) for split in ("train", "test")
    )
    options = CardOptions("", folder, tmp_path / "work", 24, 20, 2, (12, 24), PROBES, classified=6)
    card = write_card(options, train_set, test_set)
    assert card["probes"] == {}
    assert set(card["slice"]) == {"n_images", "pair"}
    x = test_set.batch(torch.arange(6))
    without = -SmoothedPair.from_pretrained(folder).elbo(x).mean() / (784 * math.log(2))
    assert card["classes"]["bits_without"] == pytest.approx(float(without), rel=1e-5)
    assert "# MNIST by class" in (text := (folder / "README.md").read_text())
    assert text.count("| two-step samples, guidance 0.1 |") == 2
    with np.load(tmp_path / "work" / "samples" / "guided.npz") as arrays:
        assert json.loads(str(arrays["asked"]))["guidance"] == card["samples"]["guidance"] == 0.1
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > 3 * 10 * 28


def test_numbers_of_a_card_are_of_their_seed_and_samples() -> None:
    """Numbers that an earlier call stored are taken for the same key alone."""

    def keys(seed: int, x: Tensor) -> tuple[Any, Any]:
        stages: Any = SimpleNamespace(
            seed=seed,
            sizes=Sizes(extractor="mnist-classifier"),
            guidance=0.0,
            models=SimpleNamespace(digests=dict),
            train_set=None,
            test_set=None,
            stored=lambda name, key, compute: key,
        )
        options = CardOptions("", seed=seed)
        return measure_samples(options, stages, {"plain": x}), measure_classes(stages, 1)

    x = torch.zeros(2, 1, 28, 28)
    samples, classes = keys(0, x)
    assert keys(0, x.clone()) == (samples, classes)
    assert keys(1, x)[0] != samples
    assert keys(1, x)[1] != classes
    assert keys(0, x + 1)[0] != samples


def test_the_limit_of_distances_is_the_intercept_in_one_over_n() -> None:
    counts = [100, 200, 500, 1000]
    assert limit_of_distances(counts, [3 + 40 / n for n in counts]) == pytest.approx(3)
    assert limit_of_distances([100], [3.0]) is None
