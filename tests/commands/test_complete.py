"""`dsmooth complete`: the given part stays, the draws are the pair's, and mistakes say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dsmooth
from dsmooth.commands import complete
from dsmooth.data import load_dataset, to_float
from dsmooth.data.pictures import BORDER
from dsmooth.data.sources import read_images, read_mask
from dsmooth.files import read_npz
from dsmooth.sampling import keep_top
from dsmooth.sampling.draw import Draw
from dsmooth.sampling.output import draw_all
from tests.helpers.command_runs import run
from tests.helpers.data_makers import refuses

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.quick
def test_completions_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", "3", "--draws", "2", "--keep-top", "0.25", "--seed", "4"]
    assert run("complete", "pair", "images", *options, "--out", "rows.png", "x.npz") == 0
    assert "wrote rows.png" in capsys.readouterr().out
    with Image.open("rows.png") as picture:
        assert picture.size == (4 * 18 + 2, 3 * 18 + 2)  # 8 pixels twice as large, and a border
        whole, part = (np.array(picture)[2:18, 2 + 18 * i :][:, :16] for i in (0, 1))
    assert np.array_equal(part[:4], whole[:4])  # the given rows; the others are missing
    assert (part[4:] == BORDER).all()
    stored = read_npz(Path("x.npz"))
    original = to_float(read_images(Path("images"), 3).images)
    mask = keep_top(0.25, (8, 8))
    pair = dsmooth.SmoothedPair.from_pretrained("pair")
    known = original.repeat_interleave(2, dim=0)
    expected = pair.sample(6, seed=4, known=known, mask=mask)
    assert np.array_equal(stored["x"], expected.numpy())
    assert np.array_equal(stored["original"], original.numpy())
    assert np.array_equal(stored["mask"], mask.numpy())
    assert stored["seed"] == 4
    assert np.array_equal(stored["x"][:, :, :2], known[:, :, :2].numpy())
    assert not np.array_equal(stored["x"][0], stored["x"][1])


def test_held_out_images_of_the_run_by_default() -> None:
    assert run("complete", "plain", "-n", "2", "--draws", "1", "--out", "x.npz") == 0
    held_out = load_dataset("folder", "test", "images").images[:2]
    assert np.array_equal(read_npz(Path("x.npz"))["original"], to_float(held_out).numpy())


def test_one_file_in_rgb_and_a_mask() -> None:
    with Image.open(sorted(Path("images").iterdir())[5]) as picture:
        grey = np.array(picture)
        picture.convert("RGB").save("digit.png")
    Image.fromarray(100 + 155 * np.eye(8, dtype=np.uint8)).save("mask.png")  # grey is missing
    Image.fromarray(np.eye(8, dtype=np.uint8)).save("bits.png")  # 0 and 1
    assert torch.equal(read_mask(Path("bits.png")), read_mask(Path("mask.png")))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("grey.png")
    refuses("`mask` must have two values, .* but grey.png has 64", read_mask, Path("grey.png"))
    options = ["--mask", "mask.png", "--draws", "3", "--out", "folder/x.npz"]
    assert run("complete", "noisy", "denoiser", "--images", "digit.png", *options) == 0
    stored = read_npz(Path("folder/x.npz"))
    assert np.array_equal(stored["mask"][0], np.eye(8, dtype=bool))
    level = to_float(torch.from_numpy(grey)).numpy()
    for x in stored["x"][:, 0]:
        assert np.array_equal(np.diagonal(x), np.diagonal(level))


@pytest.mark.usefixtures("small_models")
def test_the_labels_of_the_images_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--label own` takes them; by default the class is drawn given the known pixels."""
    draws: list[Draw] = []
    monkeypatch.setattr(
        complete,
        "draw_all",
        lambda whole: draws.append(whole) or draw_all(whole),
    )
    command = ["complete", "mnist-classes", "-n", "2", "--draws", "2", "--precision", "float32"]
    assert run(*command, "--label", "own", "--out", "own.npz") == 0
    assert run(*command, "--out", "drawn.npz") == 0
    test = load_dataset("mnist", "test")
    x, label = test.batch(torch.arange(2)), test.known_labels()[:2]
    assert draws[0].labels.tolist() == [7, 7, 2, 2]
    pair = dsmooth.SmoothedPair.from_pretrained("mnist-classes")
    for name, expected in (("own", label), ("drawn", None)):
        completed = pair.complete(x, draws=2, label=expected, precision="float32")
        assert np.array_equal(read_npz(Path(f"{name}.npz"))["x"], completed.numpy())
