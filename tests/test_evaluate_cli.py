"""`dsmooth evaluate`: from folders to numbers in JSON, and a line or two for every mistake."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.commands.frechet import load_real
from dsmooth.commands.options import DataOptions, FrechetOptions
from dsmooth.data import ImageDataset, load_dataset
from dsmooth.data.order import choose_images
from dsmooth.evaluate.classifier import load_classifier
from dsmooth.evaluate.frechet import FeatureStatistics
from dsmooth.evaluate.likelihood import conventions, score_pair, score_plain
from dsmooth.evaluate.sources import DataChoice, array_to_bytes, as_grey, read_images
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import EXTRACTOR, complains, measured, run, save_run
from tests.helpers.data_makers import random_bytes, write_images, write_mnist


@pytest.mark.quick
def test_bits_of_runs_and_of_a_saved_pair(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    test_set = load_dataset("folder", "test", "images")
    pair = dsmooth.SmoothedPair.from_runs("noisy", "denoiser")
    stored = measured(
        "bpd", "denoiser", "noisy", "--plain", "plain", "--n-noise", "2", "--seed", "5"
    )
    printed = capsys.readouterr().out
    assert stored["data"]["n_images"] == len(test_set) < 30
    assert stored["data"]["split"] == "test"
    expected = conventions(score_pair(pair, test_set, n_noise=2, seed=5))
    for row, found in zip(expected, stored["pair"]["conventions"], strict=True):
        assert found["name"] == row.name
        assert found["value"] == pytest.approx(row.value, abs=1e-9)
        assert f"{row.value:.4f}" in printed
    assert stored["pair"]["terms"]["noisy"] < 100
    less, exact = stored["pair_less"]["plain"], stored["plain"]["conventions"][0]["value"]
    assert less["value"] == pytest.approx(expected[0].value - exact, abs=1e-9)
    assert f"paired over images: {less['value']:.4f} ± {less['standard_error']:.4f}" in printed

    # The saved pair knows its data, but not their folder.
    complains(capsys, "Point --data-dir to a folder of images", "evaluate", "bpd", "pair")
    data = ["--data-dir", "images", "--limit", "3", "--batch-size", "2"]
    again = measured("bpd", "pair", *data, "--n-noise", "1")
    assert again["data"]["n_images"] == 3
    assert "plain" not in again


@pytest.mark.quick
def test_a_plain_model_is_scored_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = measured("bpd", "plain", "--limit", "3")
    printed = capsys.readouterr().out
    plain, _, _ = RunFolder(Path("plain")).load_model()
    expected = conventions(score_plain(plain, load_dataset("folder", "test", "images"), limit=3))
    assert stored["plain"]["conventions"][0]["value"] == pytest.approx(expected[0].value, abs=1e-9)
    assert f"plain: {expected[0].name}" in printed
    assert "denoiser" not in printed
    assert "pair" not in stored
    plain.head.bias.data *= math.nan
    RunFolder("nan").write_model(plain, *RunFolder("plain").read_config())
    for out in ("-", "nan.json"):
        assert run("evaluate", "bpd", "nan", "--limit", "3", "--out", out) == 1
        assert " is nan, which is no number of JSON" in capsys.readouterr().err
    assert not Path("nan.json").exists()
    # Beside a pair it gives the same number, whether named with the pair or by --plain.
    for words in (["noisy", "denoiser", "plain"], ["noisy", "denoiser", "--plain", "plain"]):
        both = measured("bpd", *words, "--n-noise", "1", "--limit", "3")
        assert both["plain"] == stored["plain"]
        assert len(both["pair"]["weights_sha256"]) == 2


def test_the_noise_of_the_target_is_that_of_training(place: Path) -> None:
    kind = {"likelihood": "continuous", "atoms": (), "fourier_features": 0, "clean_noise": 0.1}
    save_run(place / "dense", "denoiser", data="folder", data_dir="images", **kind)
    pair = dsmooth.SmoothedPair.from_runs("noisy", "dense")
    test_set = load_dataset("folder", "test", "images")
    found = measured("bpd", "noisy", "dense", "--n-noise", "1", "--limit", "3")
    expected = conventions(score_pair(pair, test_set, clean_noise=0.1, limit=3))
    for row, stored in zip(expected, found["pair"]["conventions"], strict=True):
        assert stored["value"] == pytest.approx(row.value, abs=1e-9)


def test_frechet_of_drawn_samples_is_that_of_their_files(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(EXTRACTOR)
    options = ["--extractor", "own.py:Pixels", "--subset-size", "10", "--subsets", "3"]
    drawn = ["fid", "noisy", "denoiser", "-n", "12", *options, "--seed", "2"]
    stored = measured(*drawn)
    assert stored["name"] == "Fréchet distance on own.py:Pixels"
    assert stored["n_samples"] == 12
    assert stored["n_reference"] == len(load_dataset("folder", "train", "images"))
    assert stored["n_floor"] == min(12, len(load_dataset("folder", "test", "images")))
    assert len(stored["extractor"]["sha256"]) == 64
    assert stored["reference"]["split"] == "train"
    assert stored["floor_images"]["split"] == "test"
    assert stored["samples"]["method"] == "two-step"
    assert len(stored["samples"]["weights_sha256"]) == 2
    assert "Fréchet distance on own.py:Pixels" in " ".join(capsys.readouterr().out.split())

    # The shards are used again, and a .npz of the same images gives the same numbers.
    (shard,) = place.glob("samples-two-step-12-*/shard_00000.npy")
    written = shard.stat().st_mtime_ns
    measured(*drawn, "--save-reference", "reference.npz")
    assert shard.stat().st_mtime_ns == written
    np.savez("x.npz", x=np.load(shard))
    by_file = ["fid", "x.npz", "--data", "folder", "--data-dir", "images", *options]
    statistics = measured(*by_file, "--reference", "reference.npz")
    batches = measured(*by_file, "--batch-size", "5", "--seed", "2")
    for again in (measured(*by_file), statistics, batches):
        assert again["value"] == pytest.approx(stored["value"], rel=1e-6)
        assert again["floor"] == pytest.approx(stored["floor"], rel=1e-6)
        assert again["extractor"] == stored["extractor"]
    assert statistics["kernel"] is None
    assert statistics["reference"]["split"] == "train"
    assert batches["kernel"]["value"] == pytest.approx(stored["kernel"]["value"], rel=1e-5)
    test_set = load_dataset("folder", "test", "images")
    np.savez("few.npz", x=choose_images(test_set, len(test_set) - 1))
    few = measured("fid", "few.npz", *by_file[2:])
    assert few["floor"] == few["value"]  # the floor is of such images
    # Images of another's file as the reference; nothing says of which data they are.
    alone = measured("fid", "x.npz", "--reference", "x.npz", *options, "--precision-recall")
    assert (alone["n_reference"], alone["n_floor"], alone["floor_images"]) == (12, 0, None)
    assert alone["value"] == pytest.approx(0, abs=1e-9)
    assert alone["precision_recall"] == {"precision": 1, "recall": 1, "neighbours": 3}
    # Grey images that are kept as RGB are grey on both sides.
    pixels = random_bytes((9, 8, 8, 1))
    np.savez("grey.npz", arr_0=pixels)
    np.savez("rgb.npz", arr_0=pixels.repeat(3, 3))
    for one, other in itertools.permutations(["grey.npz", "rgb.npz"]):
        saved = ["--save-reference", "saved.npz"]
        for how in ([other, *saved], ["saved.npz"]):
            grey = measured("fid", one, "--reference", *how, *options)
            assert grey["value"] == pytest.approx(0, abs=1e-9)


def test_statistics_are_compared_with_their_own_data_and_label(tmp_path: Path) -> None:
    pixels = random_bytes((12, 8, 8, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    path, mnist = tmp_path / "statistics.npz", DataChoice("mnist", None, None)
    images = DataOptions(data_dir=str(tmp_path / "images"))
    options = FrechetOptions((Path("x.npz"),), dataset=images)

    def floor(described: dict[str, Any], **changed: Any) -> ImageDataset | None:
        statistics = FeatureStatistics(2, described)
        statistics.update(torch.eye(2))
        statistics.save(path)
        return load_real(replace(options, reference=path, **changed), mnist, None)[2]

    folder = {"name": "folder", "split": "train"}
    others = floor(folder)
    assert others is not None
    assert others.name == "folder"
    floor(folder | {"floor_sha256": others.digest})
    with pytest.raises(ValueError, match="npz was saved with other test images than those of "):
        floor(folder | {"floor_sha256": "0" * 64})
    with pytest.raises(ValueError, match="npz is of folder, not of --data mnist"):
        floor(folder, dataset=DataOptions(data="mnist"))
    real, described, threes = load_real(FrechetOptions((Path("x.npz"),), label=3), mnist, None)
    assert isinstance(real, ImageDataset)
    assert f"{len(real)} images of class 3 of " in described["source"]
    assert described["floor_sha256"] == threes.digest
    for label in ("each", 4):
        with pytest.raises(ValueError, match=r"npz needs --label 3"):
            floor(described, label=label)


def test_a_classifier_is_trained_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data", 60, 30)
    options = ["--data-dir", "data", "--epochs", "1", "--seed", "3", "--out", "c.safetensors"]
    assert run("evaluate", "train-classifier", *options) == 0
    model, metadata = load_classifier(tmp_path / "c.safetensors")
    assert metadata["seed"] == "3"
    test_set = load_dataset("mnist", "test", "data")
    with torch.no_grad():
        _, logits = model(test_set.batch(torch.arange(30)))
    right = float((logits.argmax(1) == test_set.labels).float().mean())
    assert float(metadata["test_accuracy"]) == pytest.approx(right, abs=1e-4)
    assert f"{100 * right:.2f} % of 30 test images" in capsys.readouterr().out
    assert run("evaluate", "train-classifier", *options, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_images_come_in_many_forms(tmp_path: Path) -> None:
    images = torch.from_numpy(random_bytes((5, 3, 8, 8)))
    x = images.float() / 127.5 - 1
    last = images.permute(0, 2, 3, 1).numpy()
    write_images(tmp_path / "png", {f"{i}.png": array for i, array in enumerate(last)})
    (tmp_path / "shards").mkdir()
    np.save(tmp_path / "shards" / "a.npy", x[:3].numpy())
    np.save(tmp_path / "shards" / "b.npy", x[3:].numpy())
    np.save(tmp_path / "double.npy", x.double().numpy())
    np.savez(tmp_path / "last.npz", arr_0=last)
    np.savez(tmp_path / "first.npz", labels=np.zeros(5), images=images.numpy())
    for name in ("png", "shards", "double.npy", "last.npz", "first.npz"):
        found = read_images(tmp_path / name)
        assert torch.equal(found.images, images), name
        assert "5 image" in found.source
        assert torch.equal(read_images(tmp_path / name, 4).images, images[:4]), name
    assert torch.equal(as_grey(images), images)
    assert torch.equal(as_grey(images[:, :1].expand(-1, 3, -1, -1)), images[:, :1])
    assert torch.equal(array_to_bytes(images[:, 0].numpy(), "grey")[0], images[:, :1])


def test_values_become_bytes_and_diverged_images_are_counted(tmp_path: Path) -> None:
    x = torch.tensor([[-3.5, -1, -0.999, 0, 0.001, 0.9999, 1, 3], [0, 0, 0, torch.inf, 0, 0, 0, 0]])
    np.save(tmp_path / "x.npy", x.view(2, 1, 2, 4).numpy())
    found = read_images(tmp_path / "x.npy")
    assert (found.diverged, found.kept.tolist()) == (1, [True, False])
    assert found.images.flatten().tolist() == [0, 0, 0, 128, 128, 255, 255, 255]
