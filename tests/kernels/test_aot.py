"""The Triton kernels compile to what they are meant to be, without a GPU.

`test_interpreter.py` runs this file once more with the oldest Triton that the package takes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from dsmooth.kernels import logistic_mixture as kernels
from dsmooth.kernels import philox, weight_norm
from dsmooth.kernels.gated_resnet import Needs
from tests.helpers.aot_launches import KERNELS, Block, check, distinct, is_matmul
from tests.helpers.mixture_cases import n_params
from tests.helpers.triton_tools import Compiled, Launch, compile_launch, record_launches

full = partial(pytest.param, marks=pytest.mark.full)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Every number of filters with every kernel would be nine times as many; between them these have
# each kernel, dtype and kind of float32, with dropout and without, many images and few.
BLOCKS = [
    Block(40, (2, 2), skips=1, dropout=False, size=(80, 28, 28)),
    Block(24, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)),
]
MORE_BLOCKS = [
    Block(160, (2, 3), skips=2, size=(64, 32, 32)),
    Block(24, (3, 3), skips=0, dtype=FP16),
    Block(160, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)),
    Block(40, (3, 3), skips=0, size=(2, 8, 8)),
]
PARAMETERS_ALONE = Block(40, needs=Needs(x=False, skips=False))
WEIGHT_KERNELS = {"pack_kernel", "last_gradients_kernel"}
# Images, filters and skips.
SIZES = [
    ((1, 1, 1), 1, 0), ((3, 5, 7), 5, 2), ((4, 8, 8), 24, 1), ((2, 28, 28), 40, 1),
    ((2, 8, 33), 160, 2),
]  # fmt: skip
IEEE = Block(20, (2, 2), skips=1, dtype=FP32)
ELSEWHERE = [
    (Block(160, (2, 3)), 80), (replace(BLOCKS[1], size=(16, 32, 32)), 80), (IEEE, 80), (IEEE, 90),
    (Block(40, (2, 3), size=(32, 28, 28)), 80),
]  # fmt: skip


def matmuls(block: Block, arch: int) -> list[Launch]:
    """One launch of each kernel that multiplies matrices, and of each of its forms."""
    launches = [launch for launch in block.launches(arch) if is_matmul(launch)]
    return distinct(launches)


@pytest.mark.parametrize("block", [*BLOCKS, *map(full, MORE_BLOCKS)], ids=str)
def test_every_matmul_on_hopper(block: Block) -> None:
    for launch in matmuls(block, 90):
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
@pytest.mark.parametrize(("block", "arch"), ELSEWHERE, ids=str)
def test_every_matmul_elsewhere(block: Block, arch: int) -> None:
    """On Ampere, and in float32 without tensor cores."""
    for launch in matmuls(block, arch):
        check(launch, compile_launch(launch, arch), arch)


@pytest.mark.parametrize("forms", [(), full(("X", "BACKWARD", "ADJOINT", "DROPOUT"))])
def test_elementwise_kernels_neither_spill_nor_fail(forms: tuple[str, ...]) -> None:
    """Each kernel in one of its forms, and in all."""
    launches = Block(40, skips=2).launches(90) + PARAMETERS_ALONE.launches(90)
    others = [launch for launch in launches if not is_matmul(launch)]
    assert {launch.kernel.__name__ for launch in others} >= {"operands_kernel", *WEIGHT_KERNELS}
    for launch in distinct(others, *forms):
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(("size", "filters", "skips"), SIZES)
def test_weights_are_packed_and_unpacked_in_registers(size, filters, skips, dtype) -> None:
    """At all numbers of filters that are trained or run on a GPU by the tests."""
    block = Block(filters, skips=skips, size=size, dtype=dtype)
    launches = block.launches(90) + replace(block, needs=PARAMETERS_ALONE.needs).launches(90)
    launches = [x for x in distinct(launches, "X") if x.kernel.__name__ in WEIGHT_KERNELS]
    assert {launch.kernel.__name__ for launch in launches} == WEIGHT_KERNELS
    for launch in launches:
        check(launch, compile_launch(launch, 90), 90)


SHARED_CEILING = 4096  # bytes of a block: what the sums over components pass between warps
ARCHS = [90, full(80)]
# (C, likelihood, atoms, dtype, channels_last): grey is lighter in all respects, but for atoms
CASES = [
    (3, "discretized", False, torch.float32, False),
    (1, "discretized", True, torch.bfloat16, True),
    (3, "continuous", False, torch.bfloat16, False),
]
MORE_CASES = [
    (3, "gaussian", False, torch.bfloat16, True),
    (1, "discretized", True, torch.float32, True),
    (3, "discretized", False, torch.bfloat16, True),
    (1, "discretized", True, torch.bfloat16, False),
    (3, "continuous", False, torch.float16, True),
    (3, "gaussian", False, torch.float32, False),
    (1, "continuous", False, torch.float16, False),
]


def launch_of(channels, likelihood, atoms, dtype, last, *, n_mix=10, size=(32, 32)) -> Launch:
    x = torch.zeros(2, channels, *size, dtype=dtype)
    params = torch.zeros(2, n_params(channels, n_mix) + 256 * atoms, *size, dtype=dtype)
    if last:
        params = params.to(memory_format=torch.channels_last)
    outputs = torch.empty(2, *size), torch.empty_like(x), torch.empty_like(params)
    with record_launches(kernels, "log_prob_kernel") as launches:
        kernels.log_prob(x, params, *outputs, likelihood, atoms, 0.5)
    return launches[0]


def check_mixture(compiled: Compiled) -> None:
    assert compiled.local == compiled.stack == 0
    assert compiled.shared <= SHARED_CEILING


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("channels", "likelihood", "atoms", "dtype", "last"),
    [*CASES, *(full(*case) for case in MORE_CASES)],
    ids=str,
)
def test_value_and_gradient(channels, likelihood, atoms, dtype, last, arch) -> None:
    check_mixture(compile_launch(launch_of(channels, likelihood, atoms, dtype, last), arch))


@pytest.mark.parametrize(
    ("n_mix", "atoms"),
    [
        *((1, False), (5, True)),
        *map(full, (100, 1000), (False, False)),
        *map(full, (1, 10, 100), (True,) * 3),
    ],
)
def test_any_number_of_components(n_mix: int, atoms: bool) -> None:
    """Tiles of atoms are read again for each use, so they do not fill the registers."""
    channels, dtype = (1, torch.bfloat16) if atoms else (3, torch.float32)
    size = (32, 32) if atoms else (28, 28)
    launch = launch_of(channels, "discretized", atoms, dtype, False, n_mix=n_mix, size=size)
    check_mixture(compile_launch(launch, 90))


@pytest.mark.full
def test_every_kernel_builds_for_blackwell() -> None:
    launches = distinct(Block(40).launches(100))
    assert {launch.kernel.__name__ for launch in launches} == set().union(*KERNELS.values())
    for channels, likelihood, atoms in ((1, "discretized", True), (3, "gaussian", False)):
        launches.append(launch_of(channels, likelihood, atoms, BF16, False))
    for launch in launches:
        compiled = compile_launch(launch, 100)
        assert ".target sm_100" in compiled.ptx
        assert compiled.local == 0


def launches_outside_of_layers() -> list[Launch]:
    """Noise, words and weight norm of a training step, by a seed and by a tensor of one."""
    number = torch.empty((), dtype=torch.int64, device="meta")
    table = torch.empty(2**23, device="meta")
    with (
        record_launches(philox, "image_words_kernel", "noise_kernel") as launches,
        record_launches(weight_norm, "fold_kernel", "fold_gradient_kernel") as folded,
    ):
        for seed in (0, 1, 2**64 - 1, number):
            philox.image_words(1, 1, seed, number, 5)
            philox.noise(80, 784, table, seed, number, 2)
        for dtype in (FP32, BF16):
            for shape, transposed in (((160, 160, 2, 3), False), ((40, 40, 2, 2), True)):
                v = torch.empty(shape, device="meta", memory_format=torch.channels_last)
                gain, w = v.new_empty(shape[0]), torch.empty_like(v, dtype=dtype)
                weight_norm.fold(v, gain, w, gain, transposed)
                weight_norm.fold_gradient(w, gain, v, gain, (v, gain), transposed)
    return launches + folded


@pytest.mark.parametrize(("arch", "forms"), [(90, False), *(full(a, True) for a in (80, 90, 100))])
def test_noise_and_weight_norm(arch: int, forms: bool) -> None:
    """Each kernel in one of its forms, or in all."""
    launches = launches_outside_of_layers()
    for launch in launches if forms else distinct(launches):
        compiled = compile_launch(launch, arch)
        assert f".target sm_{arch}" in compiled.ptx
        assert compiled.local == compiled.stack == 0
        assert compiled.shared <= SHARED_CEILING
