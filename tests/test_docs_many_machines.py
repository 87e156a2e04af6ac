"""The commands of "From one machine to many" run, at their smallest sizes, with gloo."""

from __future__ import annotations

import json
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


# Started by torchrun instead of dsmooth: it calls it for one list of arguments after another, each
# in a process that is forked from it, and so need not import torch again.
CALLS = f"""{START}
import json, os, torch._dynamo
import dsmooth.train
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    child = os.fork()
    if child == 0:
        {COMMAND}
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        sys.exit(status)
"""


def run_all(start: str, calls: list[list[str]], folder: Path) -> None:
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
            [*run, sys.executable, "-c", CALLS, json.dumps(calls)],
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
    """Commands that torchrun starts with the same options, but for restarts, run at once."""
    calls: dict[str, list[list[str]]] = {}
    for command in commands("bash"):
        start, arguments = parts(command.replace("--max-restarts 3 ", ""))
        calls.setdefault(start, []).append(arguments)
    (alone,) = calls.pop("")
    (tmp_path / "alone").mkdir()
    wait_for_all([ForkedPython(COMMAND, alone, tmp_path / "alone")])
    for start, those in calls.items():
        run_all(start, those, tmp_path)
    assert list(map(len, calls.values())) == [8, 1]
    for run in ("alone/runs/noisy", "runs/noisy", "runs/denoiser", "runs/two", "runs/plain"):
        assert RunFolder(tmp_path / run).is_finished()
    for made in ("samples", "bits.json", "frechet.json", "probes/probes.json"):
        assert (tmp_path / made).exists()
    assert (tmp_path / "reproduction" / "report.html").exists()


def test_the_slurm_script_starts_torchrun_on_each_machine(tmp_path: Path) -> None:
    """With an srun that runs what it is given as two machines do, at the same time."""
    port, tools = free_port(), tmp_path / "bin"
    tools.mkdir()
    script = "\n".join(commands("slurm")).replace("29400", str(port))
    start = shlex.join([sys.executable, "-m", "torch.distributed.run"])
    both = f'#!/bin/bash\nshift\n{start} "$@" & first=$!\n{start} "$@" && wait $first\n'
    for name, text in (
        ("srun", both),
        ("scontrol", "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.2\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (last,) = (line for line in script.splitlines() if line.startswith("srun"))
    start, arguments = parts(last)
    start = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 1", start)
    python = shlex.join([sys.executable, "-c", START + COMMAND, *arguments])
    small = start.replace("-m ", "--no-python ") + python
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-2]"}
    done = subprocess.run(
        ["bash", "-c", script.replace(last, small)],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "runs" / "slurm").is_finished()
