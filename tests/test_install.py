"""The build as a user meets it: with and without compiler and nvcc, from a clone and an sdist.

No network: pip runs without build isolation. Everything happens in copies in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsmooth._extension import __version__
from dsmooth.cuda import images

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["csrc", "dsmooth", "kernels", "pyproject.toml", "setup.py", "MANIFEST.in"]
SOURCES += ["README.md", "LICENSE"]
PURE = {"CC": "/bin/false", "CXX": "/bin/false", "DSMOOTH_EXTENSION": "0"}
REPOSITORY = "https://example.org/owner/dsmooth"

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="installs the source tree, and there is none here"
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the tracked sources, without what earlier builds left in them."""
    target = tmp_path / "clone"
    target.mkdir()
    leftovers = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json", "build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=leftovers)
        else:
            shutil.copy(source, target / name)
    return target


def python(*arguments: str | Path, cwd: Path, **environment: str) -> tuple[str, str]:
    """Output and errors of a process, which succeeds."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> None:
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    python("-m", "pip", *arguments, *offline, cwd=cwd, **environment)


# An editable install would give the modules that an installed package lacks.
ALONE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in str(f)]\n"


@pytest.mark.full
def test_sdist_builds_a_complete_wheel_without_an_extension(clone: Path, tmp_path: Path) -> None:
    """And the installed package says what it lacks and why."""
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    python("-c", code, tmp_path, cwd=clone)
    (archive,) = tmp_path.glob("dsmooth-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        tar.extractall(tmp_path, filter="data")
    assert {"csrc/CMakeLists.txt", "csrc/bindings/module.cpp"} <= names
    assert not [name for name in names if name.endswith((".so", "_build_info.json"))]

    unpacked, site = tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "site"
    settings = {**PURE, "DSMOOTH_REPOSITORY": REPOSITORY}
    pip("wheel", unpacked, "-w", tmp_path / "w", cwd=tmp_path, **settings)
    wheel = check_wheel(tmp_path / "w", clone)
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if "/METADATA" in name)
    assert f"Project-URL: Repository, {REPOSITORY}\n" in metadata
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    assert len(links) > 3
    assert all(link.startswith(("https://", "#")) for link in links)
    for picture in ("dsmooth/pretrained/mnist/samples.png", "docs/figures/two_step.svg"):
        assert f"{REPOSITORY}/raw/v{__version__}/{picture}" in links
    wheel.extractall(site)
    assert (
        kernels_of(f"import sys; sys.path.insert(0, {str(site)!r})", tmp_path) == site / "dsmooth"
    )
    assert not list((site / "dsmooth").glob("_C*.so"))
    info = json.loads((site / "dsmooth" / "_build_info.json").read_text())
    assert info["extension"] is False
    assert info["reason"] == "DSMOOTH_EXTENSION=0"

    code = """
import torch, dsmooth
x, params = torch.zeros(1, 1, 4, 4), torch.zeros(1, 30, 4, 4)
print(dsmooth.functional.logistic_mixture_log_prob(x, params).shape)
"""
    printed, errors = python("-c", ALONE + code, cwd=tmp_path, PYTHONPATH=str(site))
    assert printed == "torch.Size([1, 4, 4])\n"
    (said,) = [line for line in errors.splitlines() if "run in PyTorch, which is slower" in line]
    assert "`pip install --no-deps --no-cache-dir --force-reinstall .`" in said


def check_wheel(folder: Path, clone: Path) -> zipfile.ZipFile:
    """The only wheel of a folder holds all of the package, and nothing beside it."""
    (wheel,) = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    python = {path.relative_to(clone).as_posix() for path in (clone / "dsmooth").rglob("*.py")}
    python |= {f"dsmooth/kernels/{path.name}" for path in (clone / "kernels").glob("*.py")}
    assert python <= names
    data = [path for path in (clone / "dsmooth" / "data").iterdir() if path.suffix != ".py"]
    assert {f"dsmooth/data/{path.name}" for path in data if path.is_file()} <= names
    others = {"py.typed", "_build_info.json", "report/page.html"}
    others |= {"evaluate/mnist_classifier.safetensors"}
    assert {f"dsmooth/{name}" for name in others} <= names
    assert not [name for name in names if name.startswith(("csrc", "tests", "kernels", "bench"))]
    # Of csrc, what a GPU's compiler reads.
    read = {path for pattern in images.PATTERNS for path in (clone / "csrc").glob(pattern)}
    in_wheel = {name for name in names if name.startswith("dsmooth/csrc/")}
    assert in_wheel == {f"dsmooth/{path.relative_to(clone).as_posix()}" for path in read}
    return zipfile.ZipFile(wheel)


def test_an_editable_install_has_the_kernels_and_no_stale_extension(clone: Path, tmp_path) -> None:
    stale = clone / "dsmooth" / "_C.cpython-000-none.so"
    stale.write_bytes(b"of an earlier build")
    # Without --ignore-installed pip would first uninstall the dsmooth that runs these tests.
    where = ["--prefix", tmp_path / "p", "--ignore-installed"]
    pip("install", "-e", clone, *where, cwd=tmp_path, **PURE)
    assert not stale.exists()
    (site,) = (tmp_path / "p").rglob("site-packages")
    assert kernels_of(f"import site; site.addsitedir({str(site)!r})", tmp_path) == clone


def test_a_source_tree_has_its_kernels_without_a_build(clone: Path, tmp_path: Path) -> None:
    assert kernels_of(f"import sys; sys.path.insert(0, {str(clone)!r})", tmp_path) == clone


def kernels_of(start: str, folder: Path) -> Path:
    """Where the folder of kernels is for a process without the dsmooth that runs these tests."""
    find = "import importlib.util as u; print(u.find_spec('dsmooth.kernels.tilings').origin)"
    code = f"{start}; {find}"
    return Path(python("-S", "-c", code, cwd=folder)[0].strip()).parents[1]


CMAKE_ERROR = """-- The CXX compiler identification is unknown
CMake Error at CMakeLists.txt:8 (project):
  The C++ compiler

    "/opt/c++"

  is not able to compile a simple test program.

-- Configuring incomplete, errors occurred!
"""
Build = Callable[..., dict[str, Any]]
MESSAGE = 'The C\\+\\+ compiler "/opt/c\\+\\+" is not able to compile a simple test program.'


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """build_native of setup.py; its commands that have the text `broken` fail."""
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    names = setup["build_native"].__globals__
    target = tmp_path / "_C.so"

    def play(wish: str, nvcc: str | None, broken: str = "nothing") -> dict[str, Any]:
        def run(command: list[str]) -> SimpleNamespace:
            if broken in " ".join(command):
                return SimpleNamespace(returncode=1, stdout=CMAKE_ERROR)
            if "--build" in command:
                target.write_bytes(b"module")
                (Path(command[-1]) / "build_facts.json").write_text("{}")
            if command[0] == nvcc:
                Path(command[-1]).write_bytes(b"image")
            return SimpleNamespace(returncode=0, stdout="")

        monkeypatch.setenv("DSMOOTH_CUDA", wish)
        monkeypatch.setitem(names, "run", run)
        if nvcc != "/opt/none":  # which is looked for
            monkeypatch.setitem(names, "find_nvcc", lambda: nvcc)
            monkeypatch.delenv("CUDACXX", raising=False)
        return setup["build_native"](target, tmp_path / "build")

    monkeypatch.setenv("CUDACXX", "/opt/none")
    return play


IMAGES = ["bfloat16.compute_80.ptx", "bfloat16.sm_80.cubin", "bfloat16.sm_90.cubin"]
SAID = " ".join(CMAKE_ERROR.split())


@pytest.mark.parametrize(
    ("way", "images", "reason"),
    [
        (("auto", "/opt/nvcc"), IMAGES, None),
        (("auto", None), [], "nvcc not found"),
        (("auto", "/opt/none"), [], "nvcc not found at CUDACXX=/opt/none"),
        (("0", "/opt/nvcc"), [], "DSMOOTH_CUDA=0"),
        (("auto", "/opt/nvcc", "/opt/nvcc"), [], f"/opt/nvcc failed: {SAID}"),
        (("auto", "/opt/nvcc", "-arch sm_90"), [], f"/opt/nvcc failed: {SAID}"),
    ],
)
def test_images_are_packaged_or_have_their_reason(build, tmp_path, way, images, reason) -> None:
    info = build(*way)
    assert info["extension"] is True
    assert info["cuda"] == {"images": images, "reason": reason}
    assert sorted(path.name for path in (tmp_path / "cuda" / "images").glob("*")) == images


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (("1", None), "nvcc not found: DSMOOTH_CUDA=0 builds without nvcc"),
        (("1", "/opt/none"), "not found at CUDACXX=/opt/none: DSMOOTH_CUDA=0 builds without"),
        (("yes", None), "DSMOOTH_CUDA must be auto, 0 or 1, got 'yes'"),
        (("0", None, ""), rf"no working C\+\+20 compiler: {MESSAGE}\napt install g\+\+"),
        (("1", "/opt/nvcc", "-ptx"), "DSMOOTH_CUDA=1, but /opt/nvcc failed: -- The CXX"),
        (("auto", "/opt/nvcc", "--build"), "the extension did not compile"),
    ],
)
def test_a_wish_that_cannot_be_met_stops_the_build(build: Build, way, message) -> None:
    with pytest.raises(SystemExit, match=message):
        build(*way)
