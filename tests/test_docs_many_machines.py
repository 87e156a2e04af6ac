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
from tests.helpers.command_runs import smaller
from tests.helpers.rank_processes import COMMAND, START, ForkedPython, free_port, wait_for_all

pytestmark = pytest.mark.full
PAGE = Path(__file__).parent.parent / "docs" / "many_machines.md"
# Options for data and weights that are not here.
ELSEWHERE = re.compile(r"--(preset|data|data-dir|extractor) \S+ ?")


def commands(language: str) -> Iterator[str]:
    for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S):
        yield from text.replace("\\\n", "").splitlines()


def follow(command: str, folder: Path) -> None:
    """Start torchrun as the page does, of two machines twice here, with two processes in all."""
    start, arguments = command.partition("dsmooth ")[0], smaller(command)
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
    alone, *calls = (ELSEWHERE.sub("", command) for command in commands("bash"))
    (tmp_path / "alone").mkdir()
    wait_for_all([ForkedPython(COMMAND, smaller(alone), tmp_path / "alone")])
    for command in calls:
        follow(command, tmp_path)
    assert len(calls) == 9
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
