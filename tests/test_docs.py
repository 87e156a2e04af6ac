"""The documents are true: their commands run, their paths and names are there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dsmooth
from dsmooth.cli import main
from dsmooth.config import ProbeSettings
from dsmooth.data import ImageDataset
from dsmooth.data.mnist import load_embedded_mnist
from tests.helpers.data_makers import random_bytes, write_images

ROOT = Path(__file__).parent.parent
# Twelve quick steps, after which samples do not diverge.
TINY = "--n-filters 4 --n-resnet 1 --n-mix 2 --context-layers 1 --dropout 0 --images 96"
TINY += " --batch-size 8 --ema 0 --learning-rate 2e-2 --warmup-images 0 --evaluations 1"
TINY += " --evaluation-images 4"


def blocks() -> Iterator[tuple[str, str]]:
    for page in ("README.md", "docs/guide.md"):
        yield from re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(), re.S)


def shrink(command: list[str]) -> list[str]:
    """The documented command with a tiny network and few images."""
    if command[0] == "train" and ("--resume" in command or "--init" in command):
        images = "104" if "--resume" in command else "16"  # a step more than TINY, or one
        command[command.index("--images") + 1] = images
        return [*command, "--evaluations", "1", "--evaluation-images", "4"]
    if command[0] == "train" and "--config" not in command:
        if "--budget" in command:
            at = command.index("--budget")
            command = command[:at] + command[at + 2 :]
        return [*command, *shlex.split(TINY)]
    for option, least in (("-n", "4"), ("--draws", "2")):
        if option in command:
            command[command.index(option) + 1] = least
    if command[:2] == ["evaluate", "bpd"]:
        return [*command, "--limit", "4", "--n-noise", "2"]
    if command[:2] == ["evaluate", "fid"]:
        return [*command, "--subsets", "2"]
    few = {"train": "4", "test": "4"}
    if command[0] == "probe":
        for split, n in few.items():
            command[command.index(f"--{split}-images") + 1] = n
        return [*command, "--epochs", "1"]
    if command[0] == "reproduce":
        probes = [part for split, n in few.items() for part in (f"--probe-{split}-images", n)]
        return [*command, "--scored-images", "4", *probes]
    return command


def few_digits(split: str) -> ImageDataset:
    data = load_embedded_mnist(split)
    assert data.labels is not None
    return replace(data, images=data.images[:300], labels=data.labels[:300])


@pytest.mark.long
def test_documented_commands_and_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_bytes((12, 8, 12, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pixels)})
    monkeypatch.setattr("dsmooth.data.load_embedded_mnist", few_digits)
    one_pass = partial(ProbeSettings, epochs=1)
    monkeypatch.setattr("dsmooth.commands.reproduce.ProbeSettings", one_pass)
    for golden in (ROOT / "tests" / "golden").glob("network_*_k2.safetensors"):
        shutil.copy(golden, tmp_path)

    ran = {"commands": 0, "python": 0}
    for language, text in blocks():
        if language == "python":
            exec(compile(text.replace("sample(64", "sample(2"), "documentation", "exec"), {})
            ran["python"] += 1
            continue
        for line in text.splitlines():
            # `reproduce` and the test command are walked from a clean clone, not from here.
            if line.startswith("dsmooth "):
                command = shrink(shlex.split(line)[1:])
                try:
                    main(command)
                except SystemExit as stop:
                    assert stop.code == 0, line  # noqa: PT017 - main always exits
                ran["commands"] += 1
    assert ran["commands"] >= 19
    assert ran["python"] >= 6
    assert (tmp_path / "samples-50k").is_dir()


@pytest.mark.quick
def test_paths_in_the_pages_exist() -> None:
    top = "dsmooth|csrc|kernels|benchmarks|tests|tools|docs"
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for path in re.findall(rf"`((?:{top})/[\w./*-]+)`", page.read_text()):
            assert list(ROOT.glob(path)), f"{page.name} names {path}, which is not there"


@pytest.mark.quick
@pytest.mark.parametrize("module", [dsmooth, dsmooth.functional, dsmooth.sampling, dsmooth.data])
def test_the_reference_has_every_public_name(module: Any) -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    described = {
        path.rpartition(".")[2]
        for path in re.findall(r"^::: (\S+)", pages, re.M)
        if path.startswith(module.__name__ + ".")
    }
    modules = {name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)}
    assert set(module.__all__) - modules - {"__version__"} <= described
