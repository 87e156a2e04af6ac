"""The waits of a newcomer: the command's help, the import, the first sample."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.measure import Bench, quick, smoke

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
    """`dsmooth --help` takes at most half a second: it does not import torch."""
    assert "train" in python(*COMMANDS["dsmooth --help"])
    contenders = {name: lambda args=args: python(*args) for name, args in COMMANDS.items()}
    turns = bench.compare(contenders, "dsmooth --help", rounds=7, shape=())
    assert turns is None or turns.of("dsmooth --help").median <= 0.5


@pytest.mark.parametrize("case", [smoke(None, id="sample-small"), quick(None, id="sample")])
def bench_sample(bench: Bench, native: None, case: None, tmp_path: Path) -> None:
    """`dsmooth sample -n 1` takes at most 3 s more than torch's import."""
    out = tmp_path / "samples.png"
    sample = ["-m", "dsmooth", "sample", "-n", "1", "--out", str(out)]
    assert "1 image in" in python(*sample)
    assert out.stat().st_size
    name = "dsmooth sample -n 1"
    contenders = {
        name: lambda: python(*sample),
        "import torch": lambda: python(*COMMANDS["import torch"]),
    }
    turns = bench.compare(contenders, name, rounds=5, shape=(1, 1, 28, 28))
    assert turns is None or turns.of(name).median - turns.of("import torch").median <= 3.0
