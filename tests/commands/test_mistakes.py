"""Every mistake at the command gets a line or two, and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsmooth.config import OWN
from tests.helpers.command_runs import complains, save_run
from tests.helpers.data_makers import random_bytes

TINY = "--n-filters=4 --n-resnet=1 --set n_mix=2 --images=16 --batch-size=8"
FID = "evaluate fid"
FOLDER = "--data folder --data-dir images"
REPRODUCE = "reproduce --models noisy denoiser"
MISTAKES = [
    (f"train noisy --preset mnist-large {TINY}", "preset must be one of mnist-quick"),
    ("train noisy --preset photos", "--images and --budget are both missing: give one of them"),
    (f"train noisy --out /proc/a {TINY}", "config.json cannot be written: /proc"),
    ("train denoiser --out noisy --resume", '"denoiser" does not go with conditioning "none"'),
    (f"train noisy --out noisy {TINY}", "folder or, to continue a run, set --resume"),
    (f"train noisy --out pair {TINY}", "pair already holds a run or saved weights: choose"),
    (f"train noisy b --data-dir c {TINY}", "--data-dir was given twice: leave one out"),
    (f"train pair {TINY} --out half", "half/denoiser already holds a run"),
    (f"train noisy --out log.json {TINY}", "config.json cannot be written: "),
    ("train noisy --set warmup=3", "got warmup=3: did you mean warmup_images?"),
    ("train noisy --set ema", "--set takes NAME=VALUE of a setting, got ema"),
    ("train noisy --set role=plain", "--set takes NAME=VALUE of a setting, got role=plain"),
    ("train noisy --set ema=much", "`ema` must be a number >= 0 and < 1, got 'much'"),
    (
        f"train noisy --seed {2**64}",
        "--seed must be a whole number >= 0 and <= 18446744073709551615, got",
    ),
    ("train noisy --set seed=3 --seed 4", "--seed was given twice: leave one out"),
    (
        "train noisy --label-dropout 0.5 --images 8",
        "--label-dropout needs a model with classes: set --cl",
    ),
    ("train noisy --device gpu --images 8", "--device must be one of cpu"),
    (f"train noisy --init nothing {TINY}", "there is no nothing"),
    ("train denoiser --init noisy", "noisy has a noisy model, not a denoiser one to begin with"),
    ("train plain --init pair", "pair has a noisy and a denoiser model, not a plain one"),
    ("sample noisy --out x.npz folder", "or be one folder, without a suffix, got x.npz folder"),
    ("sample noisy --out -", "or be one folder, without a suffix, got -"),
    ("sample x.npy", "there is no network in x.npy: give a saved pair, or the run folders of"),
    ("sample noisy --out log.json/x.png", "x.png cannot be written: "),
    ("sample noisy --out suffixless", "suffixless must be a folder to write, and is a file"),
    ("sample noisy --out folder.npz", "folder.npz must be a file to write, and is a folder"),
    ("sample plain --method single-step", "--method is for a pair, not for a single model"),
    ("sample plain --method noisy", "--method is for a pair, not for a single model: leave it out"),
    (f"{FID} large.npy -n 1", "--count must be a whole number >= 2 or None, got 1"),
    ("complete pair images --out rows", "--out must end in .png or .npz, got rows"),
    ("complete pair images --keep-top 0.2 --mask large.png", "--keep-top and --mask both say"),
    ("complete pair images --draws 40000000 -n 4 --out x.npz", "but the machine has"),
    ("complete pair images --label own", "--label was given, but the model has no classes"),
    ("complete pair", "the models do not say where their images are: to name some, set --images"),
    ("complete pair large.png", "(C, H, W) = (1, 8, 8), got 1 of (1, 8, 12) from"),
    ("complete pair nan.npy", "nan.npy holds images that are not finite: leave"),
    ("complete noisy images", "noisy is a noisy model: name the pair that it is of"),
    ("cluster plain", "clusters are of features of a noisy model"),
    ("cluster noisy --clusters 0", "--clusters must be a whole number >= 2, got 0"),
    (f"cluster noisy {FOLDER} --out images/clusters", "--out must not be inside images"),
    ("evaluate bpd", "give a saved pair"),
    ("evaluate bpd pair", '"folder" needs the folder of its files; to name it, set --data-dir'),
    ("evaluate bpd mnist --split all", "--split must be one of train, test, got 'all'"),
    ("evaluate bpd plain --plain plain", "plain holds a second plain model"),
    (
        f"evaluate bpd noisy denoiser {FOLDER} --limit 0",
        "--limit must be a whole number >= 1 or None, got",
    ),
    ("evaluate bpd own --data-dir images", "name that folder, and set --data folder"),
    ("evaluate bpd noisy denoiser --data-dir nowhere", "is in nowhere or the folders inside it"),
    ("evaluate bpd noisy denoiser --out log.json/x.json", "x.json cannot be written: "),
    ("evaluate bpd noisy denoiser --out x.txt", "--out must end in .json, got x.txt"),
    (f"{FID} nowhere", "is in nowhere or the folders inside it"),
    (f"{FID} x.npy --seed -1", "--seed must be a whole number >= 0 and <= "),
    (f"{FID} x.npy --reference none.npz", "No such file or directory: 'none.npz'"),
    (
        f"{FID} x.npy --reference fid.npz --data mnist",
        "needs images of shape (1, 28, 28), got (1, 8",
    ),
    (f"{FID} bad.npz", "must hold an array x, images, samples, arr_0, got text"),
    (f"{FID} shape.npy", "must hold images (N, C, H, W), (N, H, W, C) or (N, H, W)"),
    (f"{FID} x.npy", "images must have shape (N, 1, 28, 28), got (20, 1, 8, 8)"),
    (f"{FID} x.npy {FOLDER}", "pass your own network to make_extractor(module)"),
    ("probe noisy denoiser --data mnist", "the pair is for images (C, H, W) = (1, 8, 8)"),
    (f"{REPRODUCE} --budget 1", "--models are trained: leave out --budget"),
    ("reproduce --count 0", "--count must be a whole number >= 1, got 0"),
]


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is in `made`, and files that cannot be used."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("mistakes") / "copy")
    save_run(folder / "own", "plain", data=OWN)
    save_run(folder / "half" / "denoiser", "denoiser")
    arrays = {
        "x": random_bytes((20, 8, 8)),
        "shape": random_bytes((20, 2, 8, 8)),
        "nan": np.full((1, 8, 8), np.nan),
        "large": random_bytes((2, 28, 28)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "bad.npz", text="text")
    np.savez(folder / "fid.npz", mu=np.zeros(6), sigma=np.eye(6))
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(folder / "large.png")
    (folder / "log.json").write_text("{}")
    (folder / "suffixless").touch()
    (folder / "folder.npz").mkdir()
    return folder


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_a_mistake_gets_a_line_or_two(folder, monkeypatch, capsys, command, message) -> None:
    monkeypatch.chdir(folder)
    before = {*folder.rglob("*")}
    complains(capsys, message, *command.split())
    assert {*folder.rglob("*")} == before
