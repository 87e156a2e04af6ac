"""The logistic mixture's Triton kernels compile to what they are meant to be, without a GPU."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from dsmooth.kernels import logistic_mixture as kernels
from tests.helpers.mixture_cases import n_params
from tests.helpers.triton_tools import Compiled, Launch, compile_launch, record_launches

full = partial(pytest.param, marks=pytest.mark.full)
SHARED_CEILING = 4096  # bytes of a block: what the sums over components pass between warps
ARCHS = [90, full(80)]
FIVE = (0, 252, 253, 254, 255)
# (C, likelihood, atoms, dtype, channels_last): RGB of every kind; grey is lighter in all respects
CASES = [
    (3, "discretized", (), torch.float32, False),
    (3, "discretized", FIVE, torch.bfloat16, True),
    (3, "continuous", (), torch.bfloat16, False),
]
MORE_CASES = [
    (3, "gaussian", (), torch.bfloat16, True),
    (1, "discretized", FIVE, torch.float32, True),
    (3, "discretized", (), torch.bfloat16, True),
    (3, "discretized", FIVE, torch.float32, False),
    (3, "continuous", (), torch.float16, True),
    (3, "gaussian", (), torch.float32, False),
    (1, "continuous", (), torch.float16, False),
]


def launch_of(
    channels: int,
    likelihood: str,
    atoms: tuple[int, ...],
    dtype: torch.dtype,
    last: bool,
    *,
    n_mix: int = 10,
    size: tuple[int, int] = (32, 32),
) -> Launch:
    x = torch.zeros(2, channels, *size, dtype=dtype)
    params = torch.zeros(2, n_params(channels, n_mix) + len(atoms), *size, dtype=dtype)
    if last:
        params = params.to(memory_format=torch.channels_last)
    outputs = torch.empty(2, *size), torch.empty_like(x), torch.empty_like(params)
    with record_launches(kernels, "log_prob_kernel") as launches:
        kernels.log_prob(x, params, *outputs, likelihood, atoms, 0.5)
    return launches[0]


def check(compiled: Compiled, registers: int) -> None:
    assert compiled.local == compiled.stack == 0
    assert compiled.registers <= registers
    assert compiled.shared <= SHARED_CEILING


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("channels", "likelihood", "atoms", "dtype", "last"),
    [*CASES, *(full(*case) for case in MORE_CASES)],
    ids=str,
)
def test_value_and_gradient(
    channels: int,
    likelihood: str,
    atoms: tuple[int, ...],
    dtype: torch.dtype,
    last: bool,
    arch: int,
) -> None:
    discretized = likelihood == "discretized"
    compiled = compile_launch(launch_of(channels, likelihood, atoms, dtype, last), arch)
    check(compiled, 176 if channels == 3 and not discretized else 128)
    # A thread loads all its numbers of a parameter at once if memory runs along pixels. In
    # channels_last it runs along components, whose groups of 10 no wide load fits.
    numbers = 2 if channels == 3 and discretized else 4
    bits = "" if numbers * dtype.itemsize == 4 else f".{8 * numbers * dtype.itemsize}"
    loads = set(re.findall(r"LDG\.E[.\w]*", compiled.sass))
    assert last or loads == {f"LDG.E{bits}"}


@pytest.mark.parametrize("n_mix", [1, full(100), full(1000)])
def test_each_tile(n_mix: int) -> None:
    """For every number of components a thread holds 2 numbers of a tile, in 28 x 28 images too."""
    launch = launch_of(3, "discretized", (), torch.float32, False, n_mix=n_mix, size=(28, 28))
    constants = launch.arguments
    threads = 32 * launch.options["num_warps"]
    assert constants["BLOCK_P"] * constants["BLOCK_K"] == 2 * threads
    assert n_mix <= constants["BLOCK_K"] < 2 * n_mix
    check(compile_launch(launch, 90), 128)


@pytest.mark.parametrize("last", [False, full(True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "n_mix", "n_atoms"),
    [
        (1, 5, 256),
        full(3, 10, 33),
        full(1, 10, 256),
        full(1, 1, 256),
        full(3, 10, 1),
        full(3, 10, 5),
        full(3, 100, 256),
    ],
)
def test_any_number_of_atoms(channels: int, n_mix: int, n_atoms: int, last: bool) -> None:
    """Tiles of atoms are read again for each use: no number of them fills the registers. All 256
    levels are not compared one by one: the code stays shorter than with 33."""
    atoms = tuple(range(n_atoms))
    launch = launch_of(channels, "discretized", atoms, torch.bfloat16, last, n_mix=n_mix)
    compiled = compile_launch(launch, 90)
    check(compiled, 192 if channels == 3 else 160)
    assert channels == 3 or len(compiled.code) < 3000


@pytest.mark.quick
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("last", [False, True])
def test_scaling(last: bool, arch: int) -> None:
    unit = torch.zeros(2, 100, 28, 28, dtype=torch.bfloat16)
    if last:
        unit = unit.to(memory_format=torch.channels_last)
    with record_launches(kernels, "scale_kernel") as launches:
        kernels.scale(unit, torch.zeros(2, 28, 28), torch.empty_like(unit))
    compiled = compile_launch(launches[0], arch)
    check(compiled, 40)
    assert last or "LDG.E.128" in compiled.sass


@pytest.mark.full
@pytest.mark.parametrize(("likelihood", "atoms"), [("discretized", FIVE), ("gaussian", ())])
def test_blackwell_builds(likelihood: str, atoms: tuple[int, ...]) -> None:
    compiled = compile_launch(launch_of(3, likelihood, atoms, torch.bfloat16, False), 100)
    assert ".target sm_100" in compiled.ptx
    assert compiled.local == 0
