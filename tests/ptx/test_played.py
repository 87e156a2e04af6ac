"""Compiled kernels compute what their references do, without a GPU (README.md).

The CUDA sampler draws the images that the host draws of the same noise. The Triton kernels for
compute capability 8.0, launched by their own launchers, have at most twice the error of eager
PyTorch and a rounding. The player holds every access to what memory.py allows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch

from dsmooth.cuda.compiler import nvrtc
from dsmooth.cuda.driver import Card, Kernel
from tests.helpers.gated_cases import EPS, assert_as_good
from tests.helpers.gated_cases import make_case as make_block
from tests.helpers.mixture_cases import (
    CASES as MIXTURE_CASES,
)
from tests.helpers.mixture_cases import (
    MIXTURES,
    assert_as_exact_as_eager,
    avoid_kink,
    n_atoms,
    random_case,
    run,
)
from tests.helpers.stub_driver import StubDriver
from tests.ptx.cuda_player import (
    Case,
    CudaPlayer,
    HostLibrary,
    compiled_ptx,
    draw,
    draw_on_host,
    known_of,
    make_case,
)
from tests.ptx.memory import Memory
from tests.ptx.parse import parse

needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="torch brings no NVRTC")
# A pixel is drawn by the device's exp, log and tanh. Images are of the order of 1.
ROUNDING = 1e-6
DISCRETIZED: dict[str, Any] = {"likelihood": "discretized"}
BYTES: dict[str, Any] = {
    "likelihood": "discretized", "atoms": True, "features": 6, "hidden": 5,
}  # fmt: skip


def tiered(cases: Iterable[tuple[Any, ...]], default: list[tuple[Any, ...]]) -> list[Any]:
    """The cases; those that are not in `default` are of the full tier."""
    return [pytest.param(*c, marks=[pytest.mark.full] * (c not in default)) for c in cases]


CASES: dict[str, dict[str, Any]] = {
    "rgb stack gaussian": {
        "filters": 5, "channels": 3, "conditioning": "stack", "likelihood": "gaussian",
        "bf16": True, "n": 1,
    },
    "grey discretized in float32, completed": {
        "filters": 3, "n": 1, "completes": True, **DISCRETIZED,
    },
    "grey completed": {"filters": 4, "bf16": True, "n": 3, "max_slice": 2, "completes": True},
    "grey in float32": {"filters": 4, "n": 1},
    "grey, two fragments of images": {"filters": 4, "bf16": True, "n": 9},
    # 104 rows by 80 columns of a gate are 9 tall tiles, one for each warp and more.
    "grey, tall tiles of rows": {"filters": 34, "bf16": True, "n": 13, "width": 8},
    "grey by classes": {"filters": 12, "bf16": True, "n": 2, "n_classes": 3},
    "grey guided": {
        "filters": 4, "bf16": True, "n": 4, "max_slice": 2, "n_classes": 3, "guidance": 0.5,
    },
    "rgb discretized in float32": {"filters": 3, "channels": 3, "n": 1, **DISCRETIZED},
    "grey concat": {"filters": 20, "conditioning": "concat", "bf16": True, "n": 1},
    "rgb discretized": {"filters": 3, "channels": 3, "bf16": True, "n": 2, **DISCRETIZED},
    "grey that sees bytes": {"filters": 3, "bf16": True, "n": 3, **BYTES},
    "grey stack that sees bytes, in float32": {
        "filters": 3, "conditioning": "stack", "n": 2, "completes": True, **BYTES,
    },
}  # fmt: skip


@needs_nvrtc
@pytest.mark.parametrize("name", tiered([(name,) for name in CASES], [("rgb stack gaussian",)]))
def test_images_are_those_of_the_host(name: str, stub: StubDriver) -> None:
    """To rounding; where pixels are snapped to levels, all activations too, bit for bit."""
    settings = CASES[name]
    case = make_case(**settings)
    player = CudaPlayer(stub, case)
    expected, drawn = draw_on_host(player), draw(player)
    assert expected.images.isfinite().all()
    assert expected.images.std() > 0.01
    known, mask = known_of(case)
    if mask is not None:
        kept = ~known.isnan()
        assert kept.any()
        assert torch.equal(drawn.images[kept], known[kept])
    if settings.get("likelihood") == "discretized":
        assert torch.equal(drawn.images, expected.images)
        assert torch.equal(drawn.workspace, expected.workspace)
    else:
        off = (drawn.images - expected.images).abs().max()
        assert off < ROUNDING, off


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BLOCKS = [(dropout, dtype) for dropout in (0.0, 0.5) for dtype in DTYPES]
DEFAULT_BLOCKS = [(0.0, torch.float32), (0.5, torch.bfloat16)]


@pytest.mark.parametrize(("dropout", "dtype"), tiered(BLOCKS, DEFAULT_BLOCKS), ids=str)
def test_gated_block(dropout: float, dtype: torch.dtype) -> None:
    """Forward and backward: packing, both convolutions, gate, dropout, every gradient."""
    pytest.importorskip("triton")
    from tests.kernels.test_aot import KERNELS
    from tests.ptx.triton_player import played

    shape = ("down_right", (1, 3, 5), 5, (5, 3)) if dropout else ("down", (2, 2, 3), 4, ())
    case = make_block(*shape, dropout, dtype, gains=dropout > 0)
    with played(KERNELS, Memory(1 << 22)) as recorded:
        got = case.run("triton", dtype)
    launches = [launch.kernel.__name__ for launches_ in recorded for launch in launches_]
    matmuls = {"hidden_kernel", "hidden_gradient_kernel", "last_gradients_kernel"}
    assert matmuls | {"gate_kernel", "parameter_gradient_kernel"} <= set(launches)
    assert launches.count("gate_kernel") == 1
    exact, eager = (case.run("reference", d) for d in (torch.float64, dtype))
    assert_as_good(got, eager, exact, EPS[dtype])


# One dtype is enough for most pairs of channels and mixture.
DEFAULT_MIXTURES = [
    (3, "discretized", torch.bfloat16), (1, "gaussian", torch.float32),
    (1, "atoms", torch.bfloat16),
]  # fmt: skip
PLAYED = [
    case
    for case in ((*kind, dtype) for kind in MIXTURE_CASES for dtype in DTYPES)
    if case[2] == torch.bfloat16 or (case[0] == 1) == (case[1] in ("continuous", "gaussian"))
]


@pytest.mark.parametrize(
    ("channels", "mixture", "dtype"), tiered(PLAYED, DEFAULT_MIXTURES), ids=str
)
def test_logistic_mixture(channels: int, mixture: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from dsmooth.kernels import logistic_mixture as kernels
    from tests.ptx.triton_player import played

    x, params = (t.to(dtype) for t in random_case(channels, mixture, size=(1, 4, 6)))
    avoid_kink(params, channels, n_atoms(mixture))
    with played({kernels: ["log_prob_kernel"]}, Memory(1 << 22)):
        got = run("triton", x, params, mixture)
    assert_as_exact_as_eager(got, x, params, **MIXTURES[mixture])


CASE: dict[str, Any] = {"filters": 6, "bf16": True, "height": 12, "n": 3, "max_slice": 2}
SMALL = make_case(**CASE)


class Noted(NamedTuple):
    """One launch."""

    blocks: int
    lanes: int
    shared: int
    rows: tuple[int, int, int]  # round, first row, row after the last


class Launches:
    """A card of three processors, whose launches are only noted."""

    def __init__(self, driver: StubDriver) -> None:
        driver.launched = self._note
        self.host, self.card = HostLibrary(), Card(0)
        self.kernel = Kernel(self.card, b"code")
        self.noted: list[Noted] = []

    def _note(self, grid: list[int], block: list[int], shared: int, argument: int) -> None:
        rows = (ctypes.c_int * 3)()
        self.host.library.rows_of(ctypes.c_void_p(argument), rows)
        self.noted.append(Noted(grid[0], block[0], shared, tuple(rows)))

    def draw(self, case: Case = SMALL) -> None:
        with self.host.sampler(case, self.card) as call:
            self.host.launch_all(self.kernel, call, [None] * 5)


@pytest.fixture
def launches(stub: StubDriver) -> Launches:
    return Launches(stub)


def test_samplers_share_a_kernel(launches: Launches) -> None:
    """One of a smaller network, made between another's making and its launches, takes no shared
    memory from it."""
    with launches.host.sampler(make_case(**CASE | {"filters": 40}), launches.card) as large:
        launches.draw()
        small = launches.noted[0]
        launches.host.launch_all(launches.kernel, large, [None] * 5)
    assert small.shared < launches.noted[-1].shared
    assert {(launch.blocks, launch.lanes) for launch in launches.noted} == {(3, 256)}


@pytest.mark.parametrize("conditioning", ["none", "stack"])
def test_launches_cover_the_rows(launches: Launches, conditioning: str) -> None:
    """Each block draws every row of its slices once, in order: 13 images are 3 rounds."""
    launches.draw(make_case(conditioning, **CASE | {"n": 13}))
    rows = 24 if conditioning == "stack" else 12
    spans = [(launch.rows[0], range(*launch.rows[1:])) for launch in launches.noted]
    drawn = [(round_, row) for round_, span in spans for row in span]
    assert drawn == [(round_, row) for round_ in range(3) for row in range(rows)]


@needs_nvrtc
@pytest.mark.parametrize("operands", ["bfloat16", "float32"])
def test_the_argument_is_the_one_that_the_kernel_takes(operands: str, launches: Launches) -> None:
    """NVRTC and the C++ compiler lay it out alike."""
    (parameter,) = parse(compiled_ptx(operands))[0]["sample"].parameters
    with launches.host.sampler(SMALL, launches.card) as call:
        assert parameter.size == call("argument_bytes", result=ctypes.c_int64)
