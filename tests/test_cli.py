"""The command: help without torch, and one or two lines for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dsmooth
from dsmooth.cli import main
from dsmooth.presets import PRESETS
from tests.helpers.command_runs import run, save_run

TINY = ["--n-filters", "4", "--n-mix", "2", "--images", "16", "--batch-size", "8"]


@pytest.mark.quick
@pytest.mark.parametrize(
    "verb", ["", "train", "sample", "evaluate", "probe", "reproduce", "doctor"]
)
def test_help_does_not_import_torch(tmp_path: Path, verb: str) -> None:
    code = (
        "import sys; from dsmooth.cli import main\n"
        f"try: main({[verb, '--help'] if verb else ['--help']!r})\n"
        "except SystemExit as stop: print('status', stop.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["status 0", "False"]
    assert "usage: dsmooth" in done.stdout
    if verb == "train":
        assert all(name in done.stdout for name in PRESETS)


@pytest.mark.quick
def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"dsmooth {dsmooth.__version__}\n"


@pytest.mark.quick
def test_print_config_shows_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "denoiser", "--preset", "mnist-paper", "--print-config", *TINY) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["role"] == "denoiser"
    assert printed["model"]["conditioning"] == "stack"
    assert printed["model"]["n_filters"] == 4
    assert printed["images"] == 16
    assert printed["clean_noise"] == 0.01


def test_train_then_config_repeats_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--evaluations", "1", "--evaluation-images", "4"]
    assert run("train", "denoiser", "--out", str(first), *TINY, *options) == 0
    capsys.readouterr()
    config = str(first / "config.json")
    assert run("train", "denoiser", "--config", config, "--out", str(second)) == 0
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert run("train", "denoiser", "--config", config, "--out", str(second)) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_resume_takes_the_settings_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert run("train", "plain", *out, *TINY, "--evaluations", "1", "--evaluation-images", "4") == 0
    assert run("train", "plain", *out, "--resume") == 0
    assert run("train", "plain", *out, "--resume", "--n-filters", "8") == 1
    assert "another run: its model.n_filters is 4, not 8" in capsys.readouterr().err


@pytest.mark.quick
def test_sample_from_runs_and_from_a_pair(tmp_path: Path) -> None:
    noisy = save_run(tmp_path / "noisy", "noisy")
    denoiser = save_run(tmp_path / "denoiser", "denoiser")
    png, npz = tmp_path / "grid.png", tmp_path / "x.npz"
    # Either order of the runs, PNG and NPZ from one call.
    assert run("sample", str(denoiser), str(noisy), "-n", "3", "--out", str(png), str(npz)) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    stored = np.load(npz)
    pair = dsmooth.SmoothedPair.from_runs(noisy, denoiser)
    assert np.array_equal(stored["x"], pair.sample(3).numpy())
    pair.save_pretrained(tmp_path / "pair")
    again = tmp_path / "again.npz"
    options = ["-n", "2", "--first-index", "1", "--out", str(again)]
    assert run("sample", str(tmp_path / "pair"), *options) == 0
    assert np.allclose(np.load(again)["x"], stored["x"][1:], atol=1e-5)


def test_a_single_chunk_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines where the output is no terminal: the noisy model is half of the work."""
    monkeypatch.setattr("dsmooth.progress.LINE_SECONDS", 0.0)
    models = [str(save_run(tmp_path / role, role)) for role in ("noisy", "denoiser")]
    assert run("sample", *models, "-n", "4", "--out", str(tmp_path / "x.npz")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "drawing: 4 images"
    assert "drawing: 2/4" in lines


@pytest.mark.quick
def test_shards_hold_the_same_images_and_go_on(tmp_path: Path) -> None:
    plain = save_run(tmp_path / "plain", "plain")
    whole, folder = tmp_path / "x.npz", tmp_path / "shards"
    assert run("sample", str(plain), "-n", "5", "--first-index", "7", "--out", str(whole)) == 0
    arguments = ["sample", str(plain), "-n", "5", "--first-index", "7", "--out", str(folder)]
    assert run(*arguments) == 0
    (shard,) = folder.glob("shard_*.npy")
    assert np.array_equal(np.load(shard), np.load(whole)["x"])
    written = shard.stat().st_mtime_ns
    assert run(*arguments) == 0
    assert shard.stat().st_mtime_ns == written
    assert run(*arguments, "--seed", "1") == 1


@pytest.mark.quick
def test_sample_from_one_model(tmp_path: Path) -> None:
    plain = save_run(tmp_path / "plain", "plain")
    out = tmp_path / "x.npz"
    assert run("sample", str(plain), "-n", "2", "--seed", "3", "--out", str(out)) == 0
    x = np.load(out)["x"]
    assert x.shape == (2, 1, 8, 8)
    assert np.abs((x + 1) * 127.5 - np.round((x + 1) * 127.5)).max() < 1e-4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "noisy", "--out", "{tmp}/a"], "give --images or --budget"),
        (["train", "noisy", "--data", "cifar10", *TINY], "--data-dir"),
        (["train", "noisy", "--data-dir", "{tmp}/nowhere", *TINY], "nowhere"),
        (["train", "noisy", "--preset", "mnist-large", *TINY], "preset must be one of mnist-quick"),
        (["train", "noisy", "--resume", "--out", "{tmp}/a", *TINY], "there is no"),
        (["sample"], "name a saved pair"),
        (["sample", "{tmp}"], "there is no"),
        (["sample", "{tmp}/denoiser"], "is a denoiser: name the run of its noisy model too"),
        (["sample", "{tmp}/noisy", "{tmp}/noisy"], "are both runs of the role noisy"),
        (["sample", "{tmp}/noisy", "{tmp}/other"], "the runs do not fit together"),
        (["sample", "{tmp}/noisy", "--out", "x.gif"], "or be a folder without a suffix, got x.gif"),
        (["sample", "{tmp}/noisy", "--out", "{tmp}/no/x.png"], "there is no folder"),
        (["sample", "{tmp}/noisy", "-n", "0", "--out", "{tmp}/x.npz"], "at least 1, got 0"),
        (["sample", "{tmp}/noisy", "--temperature", "0"], "temperature must be positive"),
        (["sample", "{tmp}/noisy", "--seed", "-1"], "seed must lie in"),
    ],
)
def test_mistakes_get_a_line_or_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "noisy", "noisy")
    save_run(tmp_path / "denoiser", "denoiser")
    save_run(tmp_path / "other", "denoiser", scale=0.3)
    assert run(*(arg.replace("{tmp}", str(tmp_path)) for arg in args)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dsmooth: error: ")
    assert len(error.splitlines()) <= 3
    assert {path.name for path in tmp_path.iterdir()} == {"noisy", "denoiser", "other"}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "trian"),
        (["train"], "noisy"),
        (["train", "noise"], "noise"),
        (["sample", "--method", "three-step"], "three-step"),
        (["train", "noisy", "--n-filters", "0"], "n_filters must be at"),
        (["train", "noisy", "--batch-size", "some"], "some"),
    ],
)
def test_unknown_words_are_refused(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 2
    assert message in capsys.readouterr().err
