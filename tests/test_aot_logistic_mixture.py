"""The logistic mixture's Triton kernels compile to what they are meant to be, without a GPU."""

from __future__ import annotations

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


def launch_of(channels, likelihood, atoms, dtype, last, *, n_mix=10, size=(32, 32)) -> Launch:
    x = torch.zeros(2, channels, *size, dtype=dtype)
    params = torch.zeros(2, n_params(channels, n_mix) + len(atoms), *size, dtype=dtype)
    if last:
        params = params.to(memory_format=torch.channels_last)
    outputs = torch.empty(2, *size), torch.empty_like(x), torch.empty_like(params)
    with record_launches(kernels, "log_prob_kernel") as launches:
        kernels.log_prob(x, params, *outputs, likelihood, atoms, 0.5)
    return launches[0]


def check(compiled: Compiled) -> None:
    assert compiled.local == compiled.stack == 0
    assert compiled.shared <= SHARED_CEILING


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("channels", "likelihood", "atoms", "dtype", "last"),
    [*CASES, *(full(*case) for case in MORE_CASES)],
    ids=str,
)
def test_value_and_gradient(channels, likelihood, atoms, dtype, last, arch) -> None:
    check(compile_launch(launch_of(channels, likelihood, atoms, dtype, last), arch))


@pytest.mark.parametrize("n_mix", [1, full(100), full(1000)])
def test_any_number_of_components(n_mix: int) -> None:
    launch = launch_of(3, "discretized", (), torch.float32, False, n_mix=n_mix, size=(28, 28))
    check(compile_launch(launch, 90))


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
    """Tiles of atoms are read again for each use: no number of them fills the registers."""
    atoms = tuple(range(n_atoms))
    launch = launch_of(channels, "discretized", atoms, torch.bfloat16, last, n_mix=n_mix)
    check(compile_launch(launch, 90))


@pytest.mark.full
@pytest.mark.parametrize(("likelihood", "atoms"), [("discretized", FIVE), ("gaussian", ())])
def test_blackwell_builds(likelihood: str, atoms: tuple[int, ...]) -> None:
    compiled = compile_launch(launch_of(3, likelihood, atoms, torch.bfloat16, False), 100)
    assert ".target sm_100" in compiled.ptx
    assert compiled.local == 0
