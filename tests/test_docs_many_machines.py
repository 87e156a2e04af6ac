"""The commands of "From one machine to many" run, at their smallest sizes, with gloo."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmooth.runs import RunFolder
from tests.helpers.rank_processes import COMMAND, START, ForkedPython, free_port, wait_for_all

pytestmark = pytest.mark.full
PAGE = Path(__file__).parent.parent / "docs" / "many_machines.md"
TINY = (
    "--n-filters 4 --n-resnet 1 --n-mix 2 --dropout 0 --images 320 --batch-size 16 --ema 0"
    " --learning-rate 2e-2 --warmup-images 0 --evaluations 1 --evaluation-images 4 --threads 1"
)
SMALLER = {
    "sample": "-n 4",
    "bpd": "--limit 4",
    "fid": "--extractor mnist-classifier --data mnist --subsets 2",
    "probe": "--train-images 40 --test-images 20",
    "reproduce": "-n 4 --scored-images 4 --probe-train-images 40 --probe-test-images 20",
}
# Options for eight GPUs and data that are not here.
BIGGER = re.compile(r"--(preset|data|data-dir|extractor|batch-size) \S+ ?|-n \d+ ")


def commands(language: str) -> Iterator[str]:
    for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S):
        yield from text.replace("\\\n", "").splitlines()


def parts(command: str) -> tuple[str, list[str]]:
    """The words before dsmooth, and its arguments for a tiny network and few images."""
    start, _, arguments = command.partition("dsmooth ")
    verb = next(verb for verb in ("train", *SMALLER) if verb in arguments.split())
    small = BIGGER.sub("", arguments) + " " + (TINY if verb == "train" else SMALLER[verb])
    return start, shlex.split(small)


def follow(start: str, arguments: list[str], folder: Path) -> None:
    """Start torchrun as the page does, of two machines twice here, with two processes in all."""
    machines = 2 if "--nnodes 2" in start else 1
    start = re.sub(r"--nproc-per-node \d+", f"--nproc-per-node {2 // machines}", start)
    start = start.replace("first:29400", f"127.0.0.1:{free_port()}")
    if machines == 1:
        start = start.replace("torchrun", "torchrun --standalone")
    _, *options = shlex.split(start.replace("-m ", "--no-python "))
    run = [sys.executable, "-m", "torch.distributed.run", *options]
    children = [
        subprocess.Popen(
            [*run, sys.executable, "-c", START + COMMAND, *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(machines)
    ]
    for child in children:
        _, errors = child.communicate(timeout=200)
        assert child.returncode == 0, errors


def test_the_commands_run(tmp_path: Path) -> None:
    calls = [parts(command) for command in commands("bash")]
    (tmp_path / "alone").mkdir()
    wait_for_all([ForkedPython(COMMAND, calls[0][1], tmp_path / "alone")])
    for start, arguments in calls[1:]:
        follow(start, arguments, tmp_path)
    assert len(calls) == 10
    for run in ("alone/runs/noisy", "runs/noisy", "runs/denoiser", "runs/two", "runs/plain"):
        assert RunFolder(tmp_path / run).is_finished()
    for made in ("samples", "bits.json", "frechet.json", "probes/probes.json"):
        assert (tmp_path / made).exists()
    assert (tmp_path / "reproduction" / "report.html").exists()


def test_the_slurm_script_starts_the_command_of_two_machines() -> None:
    *_, last = commands("slurm")
    (two,) = (command for command in commands("bash") if "--nnodes 2" in command)
    variables = {'"$SLURM_NNODES"': "2", '"$SLURM_JOB_ID"': "run", '"$FIRST:29400"': "first:29400"}
    for variable, value in {**variables, "runs/slurm": "runs/two"}.items():
        last = last.replace(variable, value)
    assert last.split() == ["srun", *two.split()]
