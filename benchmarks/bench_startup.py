"""The waits of a newcomer: the command's help, the import, the installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.measure import Bench, full, quick, smoke, take_turns

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


@pytest.mark.parametrize("command", [smoke("dsmooth --help", id="small"), quick("", id="python")])
def bench_startup(bench: Bench, command: str) -> None:
    """`dsmooth --help` in at most half a second; torch's import, which it must not wait for."""
    assert "train" in python(*COMMANDS["dsmooth --help"])
    if bench.smoke:
        return bench.once(lambda: python(*COMMANDS[command]))
    contenders = {name: lambda args=args: python(*args) for name, args in COMMANDS.items()}
    turns = take_turns(contenders, rounds=7)
    run = contenders["dsmooth --help"]
    bench.record(turns, "dsmooth --help", run, shape=())
    assert turns.of("dsmooth --help").median <= 0.5
    return None


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
        target = tempfile.mkdtemp(dir=tmp_path)
        env = os.environ | {"DSMOOTH_CUDA": cuda}
        subprocess.run([*pip, target, str(source)], env=env, check=True)

    turns = take_turns({"pip install": install}, rounds=1, warmup=0)
    bench.record(turns, "pip install", lambda: None, shape=())
