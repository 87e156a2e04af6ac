"""Training on all cores: as many processes of one thread, against one process of all threads.

Both train the same run by the command, batch 32 of the embedded MNIST images in bfloat16 where
the processor has it, with torchrun or without it. What is timed is a step, from the run's own log:
the start, the first second and the last score are left out. The two take turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.measure import CPU, Bench, Work, full, quick, smoke
from dsmooth.machine import has_fast_bfloat16
from dsmooth.runs import RunFolder

pytestmark = pytest.mark.usefixtures("native")
BATCH = 32
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
    ours, single = f"{processes} processes of 1 thread", f"1 process of {CORES} threads"
    seconds = 0.0
    losses: list[float] = []

    def run(processes: int) -> None:
        nonlocal seconds
        step, loss = train(tmp_path / "run", settings, processes)
        seconds += step
        losses.append(loss)
        assert bench.smoke or loss == pytest.approx(losses[0], rel=0.02)

    dtype = torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32
    bench.compare(
        {ours: partial(run, processes), single: partial(run, 1)},
        ours,
        memory=False,
        rounds=3,
        warmup=0,
        clock=lambda: seconds,
        shape=(BATCH, 1, 28, 28),
        dtype=dtype,
        work=Work(images=BATCH),
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
