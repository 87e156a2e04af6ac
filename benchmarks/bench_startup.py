"""The waits of a newcomer: the command's help, the import, the installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsmooth
from benchmarks.measure import Bench, announce, full, quick, smoke, take_turns

PROJECT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "dsmooth --help": ["-m", "dsmooth", "--help"],
    "import dsmooth": ["-c", "import dsmooth"],
    "import torch": ["-c", "import torch"],
}


def python(*args: str) -> str:
    """Run this interpreter in a folder where no source tree hides the installed package."""
    with tempfile.TemporaryDirectory() as elsewhere:
        run = subprocess.run(
            [sys.executable, *args], cwd=elsewhere, capture_output=True, text=True, check=True
        )
    return run.stdout


@pytest.mark.parametrize("case", [smoke(None, id="small"), quick(None, id="python")])
def bench_startup(bench: Bench, case: None) -> None:
    """`dsmooth --help` in at most half a second; torch's import, which it must not wait for."""
    assert "train" in python(*COMMANDS["dsmooth --help"])
    contenders = {name: lambda args=args: python(*args) for name, args in COMMANDS.items()}
    turns = bench.compare(contenders, "dsmooth --help", rounds=7, shape=())
    assert turns is None or turns.of("dsmooth --help").median <= 0.5


@pytest.mark.parametrize("filters", [smoke(4, id="sample-small"), quick(24, id="sample")])
def bench_sample(bench: Bench, native: None, filters: int, tmp_path: Path) -> None:
    """`dsmooth sample -n 1`, a pair of mnist-quick's size: at most 3 s beyond torch's import."""
    save_pair(tmp_path / "pair", filters)
    out = tmp_path / "samples.png"
    sample = ["-m", "dsmooth", "sample", str(tmp_path / "pair"), "-n", "1", "--out", str(out)]
    assert "1 image in" in python(*sample)
    assert out.stat().st_size
    name = "dsmooth sample -n 1"
    contenders = {
        name: lambda: python(*sample),
        "import torch": lambda: python(*COMMANDS["import torch"]),
    }
    turns = bench.compare(contenders, name, rounds=5, shape=(1, 1, 28, 28))
    assert turns is None or turns.of(name).median - turns.of("import torch").median <= 3.0


def save_pair(folder: Path, filters: int) -> None:
    """A pair with the weights of a first step, whose samples stay finite."""
    noisy, denoiser = (
        dsmooth.PixelCNNpp(replace(dsmooth.preset("mnist-quick", role).model, n_filters=filters))
        for role in ("noisy", "denoiser")
    )
    with torch.no_grad():
        noisy.head.weight_g.mul_(0.1)
        denoiser.head.weight_g.mul_(0.1)
    smoothing = dsmooth.GaussianSmoothing(noisy.config.smoothing_scale)
    dsmooth.SmoothedPair(noisy, denoiser, smoothing, (28, 28)).save_pretrained(folder)


@pytest.mark.parametrize("cuda", [full("0", id="without-cuda"), full("1", id="with-cuda")])
def bench_install(bench: Bench, cuda: str, tmp_path: Path) -> None:
    """`pip install .` with its dependencies already there: the build of the extension, mostly."""
    if cuda == "1" and shutil.which("nvcc") is None:
        # DSMOOTH_CUDA=1 is then an error, on purpose.
        pytest.skip("no nvcc on the PATH")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(PROJECT), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]

    def install() -> None:
        announce("building the extension: a minute or two" + ", CUDA included" * (cuda == "1"))
        target = tempfile.mkdtemp(dir=tmp_path)
        env = os.environ | {"DSMOOTH_CUDA": cuda}
        subprocess.run([*pip, target, str(source)], env=env, check=True)

    turns = take_turns({"pip install": install}, rounds=1, warmup=0)
    bench.record(turns, "pip install", lambda: None, ())
