"""Laws of the sampler's calls to the CUDA runtime, which is played (host/runtime.cpp): errors, the
device, attributes, and which rows are launched when."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import pytest

from tests.helpers.nvcc_builds import NVCC
from tests.ptx.cuda_player import Case, HostLibrary, build_sampler, make_case

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
CASE: dict[str, Any] = {"filters": 6, "bf16": True, "height": 12, "n": 3, "max_slice": 2}
SMALL = make_case(**CASE)


class Noted(NamedTuple):
    """One launch."""

    kernel: str
    blocks: int
    lanes: int
    shared: int
    rows: tuple[int, int, int]  # round, first row, row behind the last


class Runtime(HostLibrary):
    """Launches on three processors are only noted."""

    def __init__(self) -> None:
        super().__init__(build_sampler(), processors=3)
        self.launches: list[Noted] = []

    def launched(self, name: str, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        rows = (ctypes.c_int * 3)()
        self.library.rows_of(arguments, rows)
        self.launches.append(Noted(name, grid[0], block[0], shared, tuple(rows)))

    def draw(self, case: Case = SMALL, device: int = 0) -> None:
        with self.sampler(case, device) as call:
            call("draw", *[None] * 5)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.mark.parametrize(
    ("failing", "failure", "words"),
    [
        ("cudaLaunchKernelExC", 209, "launch of .*: an error; this build has no code for the dev"),
        ("cudaDeviceGetAttribute", 35, r"cuda.*; the driver knows CUDA 12\.4, this build needs \d"),
        ("cudaFuncSetAttribute", 1, "cudaFuncSetAttribute: an error$"),
    ],
)
def test_errors_are_said_and_not_left_behind(
    runtime: Runtime, failing: str, failure: int, words: str
) -> None:
    runtime.played.failing, runtime.played.failure = failing.encode(), failure
    with pytest.raises(RuntimeError, match=f"^{words}"):
        runtime.draw()
    assert runtime.played.last_error == 0


def test_the_error_of_another_call_stays(runtime: Runtime) -> None:
    runtime.played.last_error = 1
    runtime.draw()
    assert runtime.launches
    assert runtime.played.last_error == 1


def test_the_device_must_be_there_and_current(runtime: Runtime) -> None:
    with pytest.raises(RuntimeError, match=r"^cudaDeviceGetAttribute: invalid device ordinal"):
        runtime.draw(device=100)
    with pytest.raises(RuntimeError, match="device 1 must be current, got 0"):
        runtime.draw(device=1)
    runtime.played.current = 1
    with runtime.sampler(SMALL, device=1) as call:
        call("draw", *[None] * 5)
        runtime.played.current = 0
        with pytest.raises(RuntimeError, match="device 1 must be current, got 0"):
            call("draw", *[None] * 5)


def test_samplers_share_a_kernel(runtime: Runtime) -> None:
    """One of a smaller network, made between another's making and its launches, takes no shared
    memory from it. What shared memory does not need is L1."""
    with runtime.sampler(make_case(**CASE | {"filters": 40})) as large:
        runtime.draw()
        small, whole = runtime.launches[0], 164 << 10
        given = whole * runtime.played.carve_out // 100
        assert small.shared + 1024 <= given < small.shared + 1024 + whole // 50
        large("draw", *[None] * 5)
    assert small.shared < runtime.launches[-1].shared
    for launch in runtime.launches:
        assert "Bf16" in launch.kernel
        assert (launch.blocks, launch.lanes) == (3, 256)


@pytest.mark.parametrize("conditioning", ["none", "stack"])
def test_launches_cover_the_rows(runtime: Runtime, conditioning: str) -> None:
    """Each block draws every row of its slices once, in order: 13 images are 3 rounds."""
    runtime.draw(make_case(conditioning, **CASE | {"n": 13}))
    rows = 24 if conditioning == "stack" else 12
    spans = [(launch.rows[0], range(*launch.rows[1:])) for launch in runtime.launches]
    drawn = [(round_, row) for round_, span in spans for row in span]
    assert drawn == [(round_, row) for round_ in range(3) for row in range(rows)]
