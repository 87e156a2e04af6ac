"""`dsmooth evaluate`: from folders to numbers in JSON, and images in the forms of others."""

from __future__ import annotations

import itertools
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.commands.evaluate import read_reference
from dsmooth.data import ImageDataset, load_dataset
from dsmooth.data.dataset import as_grey
from dsmooth.data.order import choose_images, epoch_order
from dsmooth.data.sources import read_images
from dsmooth.evaluate.comparison import has_fidelity
from dsmooth.evaluate.features import extract_features, make_extractor
from dsmooth.evaluate.likelihood import Scores, conventions, score_pair, score_plain
from dsmooth.files import read_json
from dsmooth.pretrained.runs import RunFolder
from dsmooth.results import FLOOR, Bits
from tests.helpers.command_runs import complains, measured, run, save_run
from tests.helpers.data_makers import random_bytes, refuses, write_images

pytestmark = pytest.mark.usefixtures("few_digits")


def held_out() -> ImageDataset:
    return load_dataset("folder", "test", "images")


def has_numbers_of(result: Bits, scores: Scores) -> None:
    for name, expected in vars(conventions(scores)).items():
        if (found := getattr(result.numbers, name)) is None:
            assert expected is None or name == "mixture"  # which the command always asks for
        else:
            assert found.value == pytest.approx(expected.value, abs=1e-9), name


@pytest.mark.quick
def test_bits_of_runs_and_of_a_saved_pair(place: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    pair = dsmooth.load("noisy", "denoiser").pair
    numbers = ["denoiser", "noisy", "--plain", "plain", "--n-noise", "2", "--seed", "5"]
    stored = measured("bpd", *numbers)
    printed = capsys.readouterr().out
    assert stored.data.n_images == len(held_out()) < 30
    has_numbers_of(stored.pair, score_pair(pair, held_out(), n_noise=2, seed=5))
    bound, exact = (x.numbers.discrete.value for x in (stored.pair, stored.plain))
    assert f"{bound:.4f}" in printed
    difference = stored.difference
    assert difference.value == pytest.approx(bound - exact, abs=1e-9)
    assert f"paired over images: {difference.value:.4f} ± {difference.error:.4f}" in printed

    again = measured("bpd", "pair", "--data-dir", "images", "--limit", "3", "--batch-size", "2")
    assert again.data.n_images == 3
    assert again.plain is None


def test_a_plain_model_is_scored_without_a_pair(place: Path, capsys) -> None:
    stored = measured("bpd", "plain", "--limit", "3")
    plain = dsmooth.load("plain").model
    has_numbers_of(stored.plain, score_plain(plain, held_out().part(slice(3))))
    assert "denoiser" not in capsys.readouterr().out
    assert stored.pair is None
    plain.head.bias.data *= math.nan
    RunFolder("nan").write_model(plain, *RunFolder("plain").read_config())
    for out in ("-", "nan.json"):
        assert run("evaluate", "bpd", "nan", "--limit", "3", "--out", out) == 1
        assert "float values are not JSON compliant" in capsys.readouterr().err
    assert not Path("nan.json").exists()
    # With a pair it gives the same number, as a model of its own or by --plain.
    for words in (["noisy", "denoiser", "plain"], ["noisy", "denoiser", "--plain", "plain"]):
        both = measured("bpd", *words, "--n-noise", "1", "--limit", "3")
        assert both.plain == stored.plain
        assert len(both.pair.weights_sha256) == 2


def test_a_folder_of_other_images_is_measured_as_a_whole(place: Path, capsys) -> None:
    """The folder of the training gives its held-out images, however it is spelled."""
    shutil.copytree("images", "others/cat")
    for words, split, folder in (
        ("plain --data-dir others", "all", "others"),
        ("pair --data-dir others", "all", "others"),
        ("plain --data-dir others --split train", "train", "others"),
        ("plain --data-dir others/../images/", "test", "images"),
        ("plain --split all", "all", "images"),
    ):
        count = len(load_dataset("folder", split, folder))
        data = measured("bpd", *words.split(), "--batch-size", "30", "--n-noise", "1").data
        assert (data.split, data.n_images) == (split, count)
        assert f"{split}: {data.n_images} images" in " ".join(capsys.readouterr().out.split())


def test_the_noise_of_the_target_is_that_of_training(place: Path) -> None:
    kind = {"likelihood": "continuous", "atoms": (), "fourier_features": 0, "clean_noise": 0.1}
    save_run(place / "dense", "denoiser", data="folder", data_dir="images", **kind)
    pair = dsmooth.load("noisy", "dense").pair
    found = measured("bpd", "noisy", "dense", "--n-noise", "1", "--limit", "3")
    has_numbers_of(found.pair, score_pair(pair, held_out().part(slice(3)), clean_noise=0.1))


def test_the_distance_of_samples_comes_with_its_floor(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    train, test = (load_dataset("mnist", split) for split in ("train", "test"))
    np.savez("x.npz", x=random_bytes((12, 1, 28, 28)))
    stored = measured("fid", "x.npz")
    printed = " ".join(capsys.readouterr().out.split())
    assert stored.name == "Fréchet distance on mnist-classifier" in printed
    # Scores are printed with the extra; without it their names are.
    names = ("Kernel distance, ±", "Inception-style score, ±", "Precision", "Recall")
    assert {word in printed for word in names} == {has_fidelity()}
    counts = [distance.n_images for distance in stored.distances.values()]
    assert ([*stored.distances], counts) == (["samples", FLOOR], [12, 12])
    assert stored.n_reference == 300
    request = read_json(Path("numbers.json"))["request"]
    assert (request["reference"]["split"], request["floor"]["split"]) == ("train", "test")

    np.savez("images.npz", train.images)
    again = measured("fid", "x.npz", "--reference", "images.npz", "--data", "mnist").distances
    for kind, distance in again.items():
        assert distance.value == pytest.approx(stored.distances[kind].value, rel=1e-6)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    np.savez("few.npz", x=choose_images(test, 299))
    few = measured("fid", "few.npz")
    # The floor is of such images.
    assert few.distances[FLOOR].value == few.distances["samples"].value
    assert few.distances["samples"].scores is None
    missing = "Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'"
    assert missing in capsys.readouterr().out
    # Nothing says of which data another's file is.
    found = measured("fid", "x.npz", "--reference", "x.npz")
    assert (found.n_reference, [*found.distances]) == (12, ["samples"])
    assert read_json(Path("numbers.json"))["request"]["floor"] is None
    x = torch.zeros(3, 1, 28, 28).index_fill(0, torch.tensor([1]), torch.inf)
    np.savez("x.npz", x=x, first_index=0)
    assert "1 samples with infinite values were left out" in measured("fid", "x.npz").warnings


@pytest.mark.usefixtures("no_fidelity")
def test_grey_images_that_are_kept_as_rgb_are_grey_on_both_sides(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((9, 28, 28, 1))
    np.savez("grey.npz", arr_0=pixels)
    np.savez("rgb.npz", arr_0=pixels.repeat(3, 3))
    features = extract_features(
        torch.from_numpy(pixels)[..., 0][:, None], make_extractor("mnist-classifier")
    ).features.double()
    np.savez("statistics.npz", mu=features.mean(0), sigma=torch.cov(features.T))
    for samples, real in itertools.product(
        ("grey.npz", "rgb.npz"), ("grey.npz", "rgb.npz", "statistics.npz")
    ):
        grey = measured("fid", samples, "--reference", real)
        assert grey.distances["samples"].value == pytest.approx(0, abs=1e-9)


def test_images_come_in_many_forms(tmp_path: Path, caplog) -> None:
    images = torch.from_numpy(random_bytes((5, 3, 8, 8)))
    x = images.float() / 127.5 - 1
    last = images.permute(0, 2, 3, 1).numpy()
    write_images(tmp_path / "png", {f"{i}.png": array for i, array in enumerate(last)})
    np.save(tmp_path / "double.npy", x.double().numpy())
    np.savez(tmp_path / "last.npz", arr_0=last)
    np.savez(tmp_path / "first.npz", labels=np.zeros(5), images=images.numpy())
    write_images(tmp_path / "deep", {f"a/{i // 2}/{i}.png": array for i, array in enumerate(last)})
    for name in ("png", "deep", "double.npy", "last.npz", "first.npz"):
        found = read_images(tmp_path / name)
        assert torch.equal(found.images, images), name
        assert "5 image" in found.source
        assert torch.equal(read_images(tmp_path / name, 4).images, images[:4]), name
    np.save(tmp_path / "grey.npy", images[:, 0].numpy())
    grey = read_images(tmp_path / "grey.npy").images
    assert torch.equal(grey, images[:, :1])
    assert torch.equal(as_grey(images), images)
    assert torch.equal(as_grey(grey.expand(-1, 3, -1, -1)), grey)
    assert not caplog.messages
    np.save(tmp_path / "dark.npy", last // 16)
    read_images(tmp_path / "dark.npy")
    assert f"the bytes of the images of {tmp_path}/dark.npy are 0 .. 15" in caplog.messages[0]


def test_values_of_another_range_are_refused_unless_dsmooth_drew_them(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    grey = load_dataset("mnist", "test").images[:50].double() / 255
    unbounded = 2 * grey - 1 + 0.02 * torch.randn(grey.shape, generator=torch.manual_seed(0))
    for x in (2 * grey - 1, unbounded):
        np.savez(path, x=x)
        assert len(read_images(path).images) == 50
    for x, got in (
        ((grey - 0.1307) / 0.3081, r"got -0.424 .. 2.82, 1\d % of them beyond 1.1: scale them"),
        (grey - 0.5, r"got -0.5 .. 0.5, 0 % of them"),
        (1.5 * grey - 1, r"got -1 .. 0.5, 0 % of them"),
        (3 * (grey - 0.5), r"got -1.5 .. 1.5, 9\d % of them"),
        (2 * grey - 1 + 0.4 * (grey > 0.9), r"got -1 .. 1.4, \d % of them beyond 1.1"),
        (255 * grey, "got 0 .. 255, .* or store bytes as uint8"),
        (grey, r"2 \* x - 1 if they are in"),
    ):
        np.savez(path, x=x)
        for read in (read_images, read_reference):
            refuses(got, read, path)
        np.savez(path, x=x, first_index=0)
        assert len(read_images(path).images) == 50


def test_some_images_of_a_file_are_taken_at_random(tmp_path: Path) -> None:
    """Files are often sorted by class: here by number, which is the colour."""
    x = torch.arange(100).byte().view(100, 1, 1, 1).expand(100, 1, 4, 4).numpy()
    write_images(tmp_path / "files", {f"{i:02}.png": image for i, image in enumerate(x[:, 0])})
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    expected = sorted(epoch_order(100, 0, 0)[:20].tolist())
    assert expected[10] > 30
    for name in ("files", "x.npz", "x.npy"):
        found = read_images(tmp_path / name, 20, at_random=True)
        assert found.images[:, 0, 0, 0].tolist() == expected, name
        assert "(20 image" in found.source
        assert read_images(tmp_path / name, 20).images[:, 0, 0, 0].tolist() == [*range(20)]


def test_runs_of_different_data_leave_the_choice_to_the_user(place: Path, capsys) -> None:
    shutil.copytree("images", "others")
    save_run(place / "d2", "denoiser", data="folder", data_dir="others")
    quick = ["--n-noise", "1", "--limit", "3"]
    for runs in (["noisy", "d2"], ["d2", "noisy"]):
        message = "the models were trained on different data, folder "
        complains(capsys, message, "evaluate", "bpd", *runs, *quick)
        # Each folder has images that were held out of one of the trainings.
        for folder in ("images", "others"):
            assert measured("bpd", *runs, "--data-dir", folder, *quick).data.split == "test"
    save_run(place / "d3", "denoiser", data="mnist")
    message = "folder images and mnist: to say which images to take, set --data\n"
    assert run("evaluate", "bpd", "noisy", "d3", *quick) == 1
    assert message in capsys.readouterr().err
    assert measured("bpd", "noisy", "d3", "--data", "folder", *quick).data.name == "folder"


def test_held_out_images_are_those_of_the_training(tmp_path: Path, monkeypatch, capsys) -> None:
    """Files are held out by their pixels, whatever their names."""
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((40, 8, 12))
    write_images(Path("images"), {f"{i}.png": picture for i, picture in enumerate(pixels)})
    config = dsmooth.preset("mnist-quick", "plain", images=8, data="folder", data_dir="images")
    model = replace(config.model, n_filters=4, n_resnet=1, n_mix=1)
    dsmooth.train(replace(config, model=model, image_size=8, batch_size=8), tmp_path / "run")
    found = measured("bpd", "run")
    assert found.data.n_images == len(load_dataset("folder", "test", "images", image_size=8))
    for path in [*Path("images").iterdir()]:
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert measured("bpd", "run") == found
    for path in sorted(Path("images").iterdir())[:30]:
        path.unlink()
    message = "the held-out images of images are not those of the training: files were added, rem"
    complains(capsys, message, "evaluate", "bpd", "run")
    assert measured("bpd", "run", "--split", "all").data.n_images == 10
