"""Settings that every test shares."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.helpers.stub_driver import StubDriver

# The tests' tensors are too small to share among threads, and tests run side by side (-n auto): on
# a busy machine threads only wait for each other. Read when torch is imported, which this module
# does not: the process that starts the workers needs no torch. Tests about thread counts set their
# own.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run and every worker; nothing is remembered from run to run.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")

# A process in the background may inherit an ignored SIGINT; tests of Ctrl-C need Python's own.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An extension in the place of dsmooth's own, such as a sanitized one (csrc/tests/run.sh).
if _path := os.environ.get("DSMOOTH_TEST_EXTENSION"):
    _spec = importlib.util.spec_from_file_location("dsmooth._C", _path)
    sys.modules["dsmooth._C"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["dsmooth._C"])

# For the tests of benchmarks/; last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_configure(config: pytest.Config) -> None:
    """The quick tier leaves out long tests, and cases of full grids as the default one does."""
    if config.option.markexpr == "quick":
        config.option.markexpr = "quick and not full and not long"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first; the cases of a `grid` are `full`, but for its diagonal."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    grids: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("grid") and hasattr(item, "callspec"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for cases in grids.values():
        mark_off_the_diagonal(cases)


def mark_off_the_diagonal(cases: list[pytest.Item]) -> None:
    """Mark the cases of a product as `full`, except case i of each parameter, for i = 0, 1, ..

    A parameter that has fewer values begins again; values that are `full` already do not count.
    Cases that are named on the command line run.
    """
    counts = (len(mark.args[1]) for mark in cases[0].iter_markers("parametrize"))
    numbers = [*itertools.product(*map(range, counts))]  # in the order of pytest's own product
    if len(numbers) > len(cases):
        return
    numbered = zip(numbers, cases, strict=True)
    own = {n: case for n, case in numbered if not case.get_closest_marker("full")}
    axes = [sorted({*axis}) for axis in zip(*own, strict=True)]
    length = max(map(len, axes), default=0)
    diagonal = {tuple(axis[i % len(axis)] for axis in axes) for i in range(length)}
    for number in own.keys() - diagonal:
        own[number].add_marker(pytest.mark.full)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The search for garbage, here and later, passes over the modules and tests, which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # extensions tell of objects that outlive the interpreter


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sees the middle 8 x 8 pixels of its images."""
    from tests.helpers.tiny_runs import use_small_runs

    use_small_runs(monkeypatch)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded subset of MNIST has 300 images of each split: features of more take longer."""
    from tests.helpers.data_makers import few_digits

    monkeypatch.setattr("dsmooth.data.load_embedded_mnist", few_digits)


@pytest.fixture
def no_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity is missing: its import takes longer than most tests of Fréchet distances."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)


@pytest.fixture(scope="session")
def small_packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import dsmooth.experiments  # noqa: F401 - which keeps a path of the real ones
    from tests.helpers.command_runs import write_small_packaged

    return write_small_packaged(tmp_path_factory.mktemp("packaged"))


@pytest.fixture
def small_models(small_packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged models have small untrained networks."""
    monkeypatch.setattr("dsmooth.pretrained.folders.HERE", small_packaged)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of 8 x 8, the runs of small models of them, and the saved pair."""
    import dsmooth
    from tests.helpers.command_runs import save_run
    from tests.helpers.data_makers import random_bytes, write_images

    folder = tmp_path_factory.mktemp("made")
    pixels = random_bytes((60, 8, 8), seed=3)
    write_images(folder / "images", {f"{i:03d}.png": array for i, array in enumerate(pixels)})
    for role in ("noisy", "denoiser", "plain"):
        save_run(folder / role, role, data="folder", data_dir="images")
    dsmooth.load(folder / "noisy", folder / "denoiser").pair.save_pretrained(folder / "pair")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all that is in `made`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubDriver]:
    """A CUDA driver without a card, which the package uses."""
    from tests.helpers.stub_driver import stub_driver

    with stub_driver(monkeypatch, tmp_path) as stub:
        yield stub


@pytest.fixture
def no_plots() -> Iterator[None]:
    """Plots of reports are a pixel."""
    from tests.helpers.report_checks import without_plots

    with without_plots():
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu run where there is a device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
