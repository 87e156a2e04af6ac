"""The documents are true: their commands run, their paths and names are there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dsmooth
from dsmooth.config import ProbeSettings
from dsmooth.data import SPLITS
from dsmooth.data.published import load_embedded_mnist
from dsmooth.runs import RunFolder
from tests.helpers.command_runs import run, smaller
from tests.helpers.data_makers import random_bytes, write_images
from tests.helpers.rank_processes import COMMAND, START, ForkedPython, free_port, wait_for_all

ROOT = Path(__file__).parent.parent
# Pages whose code and commands run, those of a row one after the other in one folder.
PAGES = (
    ("README.md", "docs/guide.md"),
    ("docs/own_images.md",),
    ("docs/recipes.md", "docs/api/training.md"),
)
# Options for data and weights that are not here.
ELSEWHERE = re.compile(r"--(preset|data|data-dir|extractor) \S+ ?")


def blocks(*pages: str) -> Iterator[tuple[str, str]]:
    """Language and text of each code block."""
    for page in pages:
        yield from re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(), re.S)


def shrink(line: str) -> list[str]:
    """The documented command with a tiny network and few images."""
    command = smaller(line.replace("--image-size 32", "--image-size 8"))
    if "--image-size" in command:  # colours, whose samples diverge for longer
        return [*command, "--images", "480"]
    if "--resume" in command:
        return [*command, "--images", "104"]  # a step more
    if "--init" in command:
        few = "--images 16 --evaluations 1 --evaluation-images 4"
        return [*shlex.split(line)[1:], *few.split()]
    return command


@pytest.mark.long
@pytest.mark.parametrize("pages", PAGES, ids=" ".join)
def test_documented_commands_and_code_run(pages, tmp_path, monkeypatch, no_plots: None) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((40, 8, 12, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    few_digits = {split: load_embedded_mnist(split).part(slice(300)) for split in SPLITS}
    monkeypatch.setattr("dsmooth.data.load_embedded_mnist", few_digits.get)
    one_pass = partial(ProbeSettings, epochs=1)
    monkeypatch.setattr("dsmooth.commands.reproduce.ProbeSettings", one_pass)
    for golden in (ROOT / "tests" / "golden").glob("network_*_k2.safetensors"):
        shutil.copy(golden, tmp_path)

    commands = 0
    for language, text in blocks(*pages):
        if name := re.match(r"# (\w+\.py)\n", text):
            Path(name[1]).write_text(text)
        elif language == "python":
            for long, short in (("sample(64", "sample(2"), ("image_size=32", "image_size=8")):
                text = text.replace(long, short)
            exec(compile(text, "documentation", "exec"), {})
            continue
        for line in text.splitlines():
            # `reproduce` and the test command are walked from a clean clone, not from here.
            if line.startswith("dsmooth "):
                assert run(*shrink(line)) == 0, line
                commands += 1
            elif line.startswith("torchrun "):
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                subprocess.run([*launch, *shlex.split(line)[1:]], check=True, timeout=300)
    assert commands >= 4


@pytest.mark.quick
def test_paths_in_the_pages_exist() -> None:
    top = "dsmooth|csrc|kernels|benchmarks|tests|tools|docs"
    old = {*(ROOT / "docs").glob("decisions/*.md"), *(ROOT / "docs").glob("experiments/*.md")}
    for page in {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - old:
        for path in re.findall(rf"`((?:{top})/[\w./*-]+)`", page.read_text()):
            assert list(ROOT.glob(path)), f"{page.name} names {path}, which is not there"


@pytest.mark.quick
@pytest.mark.parametrize(
    "module", [dsmooth, dsmooth.data, dsmooth.functional, dsmooth.sampling, dsmooth.training]
)
def test_the_reference_has_every_public_name(module: Any) -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    described = {
        path.rpartition(".")[2]
        for path in re.findall(r"^::: (\S+)", pages, re.M)
        if path.startswith(module.__name__ + ".")
    }
    modules = {name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)}
    assert set(module.__all__) - modules - {"__version__"} <= described


def on_many_machines(language: str) -> Iterator[str]:
    """Lines of that language in "From one machine to many"."""
    for found, text in blocks("docs/many_machines.md"):
        if found == language:
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
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
    children = [
        subprocess.Popen(
            [*torchrun, sys.executable, "-c", START + COMMAND, *arguments],
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


@pytest.mark.full
def test_the_commands_of_many_machines_run(tmp_path: Path) -> None:
    """At their smallest sizes, with gloo."""
    alone, *calls = (ELSEWHERE.sub("", command) for command in on_many_machines("bash"))
    (tmp_path / "alone").mkdir()
    wait_for_all([ForkedPython(COMMAND, smaller(alone), tmp_path / "alone")])
    for command in calls:
        follow(command, tmp_path)
    assert len(calls) == 9
    for folder in ("alone/runs/noisy", "runs/noisy", "runs/denoiser", "runs/two", "runs/plain"):
        assert RunFolder(tmp_path / folder).is_finished()
    for made in ("samples", "bits.json", "frechet.json", "probes/probes.json"):
        assert (tmp_path / made).exists()
    assert (tmp_path / "reproduction" / "report.html").exists()


def test_the_slurm_script_starts_the_command_of_two_machines() -> None:
    *_, last = on_many_machines("slurm")
    (two,) = (command for command in on_many_machines("bash") if "--nnodes 2" in command)
    variables = {'"$SLURM_NNODES"': "2", '"$SLURM_JOB_ID"': "run", '"$FIRST:29400"': "first:29400"}
    for variable, value in {**variables, "runs/slurm": "runs/two"}.items():
        last = last.replace(variable, value)
    assert last.split() == ["srun", *two.split()]
