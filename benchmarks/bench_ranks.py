"""Training on all cores: as many processes of one thread, against one process of all threads.

Both train the same run by the command, batch 32 of the embedded MNIST images in bfloat16, with
torchrun or without it. What is timed is a step, from the run's own log: the start, the first second
and the last score are left out. The two take turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Bench, Turns, Work, announce, full, quick, smoke
from dsmooth.runs import RunFolder

pytestmark = pytest.mark.usefixtures("native")
BATCH = 32
ROUNDS = 3
CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("filters", "layers", "images"),
    [
        smoke(4, 1, 64, id="small"),
        quick(24, 2, 4_000, id="F24-R2"),
        full(40, 5, 1_500, id="F40-R5"),
    ],
)
def bench_ranks(bench: Bench, filters: int, layers: int, images: int, tmp_path: Path) -> None:
    """As many processes as cores, and one; the held-out loss at their end is nearly the same."""
    processes = 2 if bench.smoke else CORES
    settings = [f"--n-filters={filters}", f"--n-resnet={layers}", f"--batch-size={BATCH}"]
    settings += [f"--images={images}", "--evaluations=1", "--evaluation-images=200"]
    contenders = {
        f"{processes} processes of 1 thread": processes,
        f"1 process of {CORES} threads": 1,
    }
    folder = tmp_path / "run"
    if bench.smoke:
        bench.benchmark.pedantic(lambda: train(folder, settings, processes), rounds=1)
        return
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, count in contenders.items():
            announce(f"round {number + 1} of {ROUNDS}: {name}")
            step, losses[name] = train(folder, settings, count)
            seconds[name].append(step)
    first, second = losses.values()
    assert first == pytest.approx(second, rel=0.02)
    bench.record(
        *(Turns(seconds), next(iter(contenders)), lambda: None),
        *((BATCH, 1, 28, 28), torch.bfloat16, Work(images=BATCH)),
    )


def train(folder: Path, settings: list[str], processes: int) -> tuple[float, float]:
    """Seconds of a step of a new run in `folder`, and the held-out loss at its end."""
    shutil.rmtree(folder, ignore_errors=True)
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    threads = CORES // processes
    command = [*start, "dsmooth", "train", "plain", *settings, f"--threads={threads}"]
    run = subprocess.run(
        [*command, f"--out={folder}"],
        cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    log = RunFolder(folder).read_log()
    steps = [entry for entry in log if entry["event"] == "step"]
    loss = next(entry["bits_per_dim"] for entry in log if entry["event"] == "evaluation")
    images, seconds = (steps[-1][key] - steps[0][key] for key in ("images", "seconds"))
    return BATCH * seconds / max(images, 1), loss
