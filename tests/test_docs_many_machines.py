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

from dsmooth.cli import main
from dsmooth.runs import RunFolder
from tests.helpers.rank_processes import COMMAND, free_port

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
# What the page says for eight GPUs and data that are not here.
BIGGER = re.compile(r"--(preset|data|data-dir|extractor|batch-size) \S+ ?|-n \d+ ")


def commands(language: str) -> Iterator[str]:
    for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S):
        yield from text.replace("\\\n", "").splitlines()


def shrink(command: str) -> str:
    """The same command with a tiny network and few images."""
    verb = next(verb for verb in ("train", *SMALLER) if f" {verb} " in command)
    return BIGGER.sub("", command) + " " + (TINY if verb == "train" else SMALLER[verb])


def as_torchrun(command: str, processes: int) -> list[str]:
    """torchrun of this environment, with so many processes and the package under test."""
    command = re.sub(r"--nproc-per-node \d+", f"--nproc-per-node {processes}", command)
    _, _, rest = command.partition("torchrun ")
    options, _, arguments = rest.partition(" -m dsmooth ")
    run = [sys.executable, "-m", "torch.distributed.run", *shlex.split(options), "--no-python"]
    return [*run, sys.executable, "-c", COMMAND, *shlex.split(arguments)]


def run_all(commands: list[list[str]], folder: Path) -> None:
    """Run commands at the same time; all of them end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for command in commands
    ]  # fmt: skip
    for child in children:
        _, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in commands("bash"):
        small = shrink(command)
        if command.startswith("dsmooth "):
            small = small.replace("runs/noisy", "runs/alone")
            with pytest.raises(SystemExit, match=r"^0$"):
                main(shlex.split(small)[1:])
        elif "--nnodes 2" in command:  # two machines are two torchruns here, of a process each
            small = small.replace("first:29400", f"127.0.0.1:{free_port()}")
            run_all([as_torchrun(small, 1)] * 2, tmp_path)
        else:
            small = small.replace("torchrun ", "torchrun --standalone ")
            run_all([as_torchrun(small, 2)], tmp_path)
        ran.append(small)
    assert len(ran) == 10
    for role in ("noisy", "denoiser", "two", "plain"):
        assert RunFolder(tmp_path / "runs" / role).is_finished()
    for made in ("samples", "bits.json", "frechet.json", "probes/probes.json"):
        assert (tmp_path / made).exists()
    assert (tmp_path / "reproduction" / "report.html").exists()


def test_the_slurm_script_starts_torchrun_on_each_machine(tmp_path: Path) -> None:
    """With an srun that runs what it is given as two machines do, at the same time."""
    port, tools = free_port(), tmp_path / "bin"
    tools.mkdir()
    script = "\n".join(commands("slurm")).replace("29400", str(port))
    start = shlex.join(as_torchrun("torchrun -m dsmooth ", 1)[:3])
    both = f'#!/bin/bash\nshift\n{start} "$@" & first=$!\n{start} "$@" && wait $first\n'
    for name, text in (
        ("srun", both),
        ("scontrol", "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.2\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (last,) = (line for line in script.splitlines() if line.startswith("srun"))
    small = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 1", shrink(last))
    code = tmp_path / "dsmooth_here.py"
    code.write_text(COMMAND)
    small = small.replace("-m dsmooth", f"--no-python {sys.executable} {code}")
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
