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
from dsmooth.config import ProbeSettings
from dsmooth.data import ImageDataset
from dsmooth.data.mnist import load_embedded_mnist
from tests.helpers.command_runs import run, smaller
from tests.helpers.data_makers import random_bytes, write_images

ROOT = Path(__file__).parent.parent


def blocks() -> Iterator[tuple[str, str]]:
    for page in ("README.md", "docs/guide.md"):
        yield from re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(), re.S)


def shrink(line: str) -> list[str]:
    """The documented command with a tiny network and few images."""
    command = smaller(line)
    if "--resume" in command:
        return [*command, "--images", "104"]  # a step more
    if "--init" in command:
        few = "--images 16 --evaluations 1 --evaluation-images 4"
        return [*shlex.split(line)[1:], *few.split()]
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
                assert run(*shrink(line)) == 0, line
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
