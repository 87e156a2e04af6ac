"""`dsmooth evaluate`: from folders to numbers in JSON, and images in the forms of others."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dsmooth
from dsmooth.data import ImageDataset, load_dataset
from dsmooth.data.order import choose_images, epoch_order
from dsmooth.evaluate.comparison import has_fidelity
from dsmooth.evaluate.likelihood import Scores, conventions, score_pair, score_plain
from dsmooth.evaluate.sources import as_grey, read_images, read_reference
from dsmooth.results import FLOOR, Bits
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import complains, measured, request_measured, run, save_run
from tests.helpers.data_makers import random_bytes, refuses, write_images

pytestmark = pytest.mark.usefixtures("few_digits")


def held_out() -> ImageDataset:
    return load_dataset("folder", "test", "images")


def has_numbers_of(result: Bits, scores: Scores) -> None:
    expected = [(row.name, pytest.approx(row.value, abs=1e-9)) for row in conventions(scores)]
    assert [(row.name, row.value) for row in result.conventions] == expected


@pytest.mark.quick
def test_bits_of_runs_and_of_a_saved_pair(place: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    pair = dsmooth.SmoothedPair.from_runs("noisy", "denoiser")
    numbers = ["denoiser", "noisy", "--plain", "plain", "--n-noise", "2", "--seed", "5"]
    stored = measured("bpd", *numbers)
    printed = capsys.readouterr().out
    assert stored.data.n_images == len(held_out()) < 30
    has_numbers_of(stored.pair, score_pair(pair, held_out(), n_noise=2, seed=5))
    bound, exact = stored.pair.conventions[0].value, stored.plain.value
    assert f"{bound:.4f}" in printed
    difference = stored.difference
    assert difference.value == pytest.approx(bound - exact, abs=1e-9)
    assert f"paired over images: {difference.value:.4f} ± {difference.error:.4f}" in printed

    # The saved pair knows its data, but not their folder.
    complains(capsys, "To name a folder of images, set --data-dir", "evaluate", "bpd", "pair")
    again = measured("bpd", "pair", "--data-dir", "images", "--limit", "3", "--batch-size", "2")
    assert again.data.n_images == 3
    assert again.plain is None


@pytest.mark.quick
def test_a_plain_model_is_scored_without_a_pair(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = measured("bpd", "plain", "--limit", "3")
    plain, _, _ = RunFolder(Path("plain")).load_model()
    has_numbers_of(stored.plain, score_plain(plain, held_out().part(slice(3))))
    assert "denoiser" not in capsys.readouterr().out
    assert stored.pair is None
    plain.head.bias.data *= math.nan
    RunFolder("nan").write_model(plain, *RunFolder("plain").read_config())
    for out in ("-", "nan.json"):
        assert run("evaluate", "bpd", "nan", "--limit", "3", "--out", out) == 1
        assert "a number to write is not finite: " in capsys.readouterr().err
    assert not Path("nan.json").exists()
    # With a pair it gives the same number, as a model of its own or by --plain.
    for words in (["noisy", "denoiser", "plain"], ["noisy", "denoiser", "--plain", "plain"]):
        both = measured("bpd", *words, "--n-noise", "1", "--limit", "3")
        assert both.plain == stored.plain
        assert len(both.pair.weights_sha256) == 2


@pytest.mark.quick
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
    message = "--split must be one of train, test, got 'all'"
    complains(capsys, message, *["evaluate", "bpd", "mnist", "--split", "all"])


def test_the_noise_of_the_target_is_that_of_training(place: Path) -> None:
    kind = {"likelihood": "continuous", "atoms": (), "fourier_features": 0, "clean_noise": 0.1}
    save_run(place / "dense", "denoiser", data="folder", data_dir="images", **kind)
    pair = dsmooth.SmoothedPair.from_runs("noisy", "dense")
    found = measured("bpd", "noisy", "dense", "--n-noise", "1", "--limit", "3")
    has_numbers_of(found.pair, score_pair(pair, held_out().part(slice(3)), clean_noise=0.1))


def test_frechet_of_drawn_samples_is_that_of_their_files(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "plain", "plain", size=28)
    name, drawn = "Fréchet distance on mnist-classifier", ["fid", "plain", "-n", "12"]
    stored = measured(*drawn)
    printed = " ".join(capsys.readouterr().out.split())
    assert stored.name == name in printed
    # Scores are printed with the extra; without it their names are.
    names = ("Kernel distance, ±", "Inception-style score, ±", "Precision", "Recall")
    assert {word in printed for word in names} == {has_fidelity()}
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    counts = [distance.n_images for distance in stored.distances.values()]
    assert ([*stored.distances], counts) == (["samples", FLOOR], [12, 12])
    assert stored.n_reference == 300
    request = request_measured()
    assert (request["reference"]["split"], request["floor"]["split"]) == ("train", "test")
    assert [*request["samples"]["weights_sha256"]] == ["plain"]

    # The shards are used again, and a .npz of the same images gives the same numbers.
    (shard,) = tmp_path.glob("samples-12-*/shard_00000.npy")
    written = shard.stat().st_mtime_ns
    measured(*drawn, "--save-reference", "reference.npz")
    assert shard.stat().st_mtime_ns == written
    np.savez("x.npz", x=np.load(shard))
    statistics = measured("fid", "x.npz", "--reference", "reference.npz")
    for again in (measured("fid", "x.npz"), statistics):
        for kind, distance in again.distances.items():
            assert distance.value == pytest.approx(stored.distances[kind].value, rel=1e-6)
        assert again.extractor == stored.extractor
    assert statistics.distances["samples"].scores is None
    missing = "Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'"
    assert missing in capsys.readouterr().out
    np.savez("few.npz", x=choose_images(load_dataset("mnist", "test"), 299))
    few = measured("fid", "few.npz")
    # The floor is of such images.
    assert few.distances[FLOOR].value == few.distances["samples"].value
    for wrong, message in (
        ("--split test", "--split must be train, as reference.npz was saved, got test"),
        ("--data cifar10", "--data must be mnist, as reference.npz was saved, got cifar10"),
        ("--label 3", "--label must be each, as reference.npz was saved, got 3"),
    ):
        words = f"evaluate fid x.npz --reference reference.npz {wrong}"
        complains(capsys, message, *words.split())
    # Images of another's file as the reference; nothing says of which data they are.
    found = measured("fid", "x.npz", "--reference", "x.npz")
    assert (found.n_reference, [*found.distances]) == (12, ["samples"])
    assert request_measured()["floor"] is None


@pytest.mark.usefixtures("no_fidelity")
def test_grey_images_that_are_kept_as_rgb_are_grey_on_both_sides(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((9, 28, 28, 1))
    np.savez("grey.npz", arr_0=pixels)
    np.savez("rgb.npz", arr_0=pixels.repeat(3, 3))
    for samples, real in itertools.permutations(["grey.npz", "rgb.npz"]):
        for reference in ([real, "--save-reference", "saved.npz"], ["saved.npz"]):
            grey = measured("fid", samples, "--reference", *reference)
            assert grey.distances["samples"].value == pytest.approx(0, abs=1e-9)


def test_images_come_in_many_forms(tmp_path: Path, caplog) -> None:
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
    write_images(tmp_path / "deep", {f"a/{i // 2}/{i}.png": array for i, array in enumerate(last)})
    for name in ("png", "deep", "shards", "double.npy", "last.npz", "first.npz"):
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


def test_values_become_bytes_and_diverged_images_are_counted(tmp_path: Path) -> None:
    x = torch.tensor([[-3.5, -1, -0.999, 0, 0.001, 0.9999, 1, 3], [0, 0, 0, torch.inf, 0, 0, 0, 0]])
    np.savez(tmp_path / "x.npz", x=x.view(2, 1, 2, 4).numpy(), first_index=0)
    found = read_images(tmp_path / "x.npz")
    assert (found.diverged, found.kept.tolist()) == (1, [True, False])
    assert found.images.flatten().tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


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
        (3 * (grey - 0.5), r"got -1.5 .. 1.5, 9\d % of them"),
        (2 * grey - 1 + 0.4 * (grey > 0.9), r"got -1 .. 1.4, \d % of them beyond 1.1"),
        (255 * grey, "got 0 .. 255, .* or store bytes as uint8"),
        (grey, "got none below 0"),
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
    (tmp_path / "shards").mkdir()
    for number in range(4):
        np.save(tmp_path / "shards" / f"{number}.npy", x[25 * number :][:25])
    expected = sorted(epoch_order(100, 0, 0)[:20].tolist())
    assert expected[10] > 30
    for name in ("files", "x.npz", "shards"):
        found = read_images(tmp_path / name, 20, at_random=True)
        assert found.images[:, 0, 0, 0].tolist() == expected, name
        assert "(20 image" in found.source
        assert read_images(tmp_path / name, 20).images[:, 0, 0, 0].tolist() == [*range(20)]


@pytest.mark.usefixtures("no_fidelity")
def test_the_labels_in_a_file_of_samples_are_used(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_dataset("mnist", "test")
    np.savez("each.npz", x=digits.images, label=digits.labels)
    np.savez("sevens.npz", x=digits.images[digits.labels == 7])
    np.savez("none.npz", x=digits.images)
    chosen = measured("fid", "each.npz", "--label", "7")
    assert chosen.distances == measured("fid", "sevens.npz", "--label", "7").distances
    by_class = {row.label: row for row in measured("fid", "each.npz", "--per-class").classes}
    assert [*by_class] == [*range(10)]
    assert by_class[7].distances["samples"].value == chosen.distances["samples"].value
    capsys.readouterr()
    words = ["evaluate", "fid", "none.npz", "--per-class"]
    complains(capsys, "--per-class needs labelled samples, but none.npz (300 images) has", *words)
    np.savez("no-sevens.npz", x=digits.images[:9], label=np.arange(9) % 7)
    words = ["evaluate", "fid", "no-sevens.npz", "--label", "7"]
    complains(capsys, "--label 7 is of 0 images of no-sevens.npz (9 images)", *words)


@pytest.mark.usefixtures("no_fidelity")
def test_folders_that_were_drawn_with_another_label_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "plain", "plain", size=28, n_classes=10)
    for kind in ([], ["--png"]):
        for label in ("each", "7"):
            words = ["sample", "plain", "-n", "20", "--label", label, *kind, "--out", f"of{label}"]
            assert run(*words) == 0
        assert len(measured("fid", "of7", "--label", "7").distances) == 2
        words = ["evaluate", "fid", "ofeach", "--label", "7"]
        complains(capsys, "--label 7 is not the label of ofeach (20 image", *words)
        for folder in ("of7", "ofeach"):
            shutil.rmtree(folder)


@pytest.mark.usefixtures("no_fidelity")
def test_labels_of_other_classes_than_the_real_images_are_refused(tmp_path, monkeypatch, capsys):
    """A number is another class for a model of clusters than for MNIST."""
    monkeypatch.chdir(tmp_path)
    names = tuple(f"cluster {number}" for number in range(10))
    save_run(tmp_path / "plain", "plain", size=28, n_classes=10, class_names=names)
    for label, out in (("each", "each.npz"), ("3", "shards"), ("3", "pictures")):
        png = ["--png"] * (out == "pictures")
        assert run("sample", "plain", "-n", "20", "--label", label, "--out", out, *png) == 0
        by_class = ["--per-class"] if label == "each" else ["--label", label]
        message = "has labels of other classes than cluster 0, cluster 1"
        complains(capsys, message, "evaluate", "fid", out, *by_class)
        assert len(measured("fid", out).distances) == 2


@pytest.mark.usefixtures("no_fidelity")
def test_a_floor_of_other_images_than_the_reference_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((40, 28, 28))
    for folder, images in (("a", pixels), ("b", 255 - pixels)):
        for label in (0, 1):
            for number, split in enumerate(("train", "test")):
                part = images[2 * number + label :: 4]
                named = {f"{i}.png": image for i, image in enumerate(part)}
                write_images(Path(folder, split, ("cat", "dog")[label]), named)
    np.savez("x.npz", x=pixels, label=np.arange(40) % 2)
    words = ["x.npz", "--data", "folder", "--data-dir"]
    saved = measured("fid", *words, "a", "--save-reference", "s.npz").distances
    again = measured("fid", *words, "a", "--reference", "s.npz").distances
    assert again[FLOOR].value == saved[FLOOR].value
    message = "--data-dir must name the data set that s.npz was saved with: the test images of b"
    complains(capsys, message, "evaluate", "fid", *words, "b", "--reference", "s.npz")

    # The table of classes has their names, and warnings as that of all images.
    cat, dog = measured("fid", *words, "a", "--per-class").classes
    assert (cat.name, dog.name) == ("cat", "dog")
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: class dog: 20 samples are fewer than the 128 features" in printed
    assert re.search(r"cat\W+20\W", printed)


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
    complains(capsys, message, "evaluate", "bpd", "noisy", "d3", *quick)
    assert measured("bpd", "noisy", "d3", "--data", "folder", *quick).data.name == "folder"
