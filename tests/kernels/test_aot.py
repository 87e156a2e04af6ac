"""The Triton kernels compile to what they are meant to be, without a GPU.

`test_interpreter.py` runs this file once more with the oldest Triton that the package takes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")

from dsmooth.functional import Shift
from dsmooth.functional.gated_resnet_op import BACKENDS
from dsmooth.functional.gated_resnet_operands import GatedResnetCall, Operands
from dsmooth.kernels import expand, gated_resnet, philox, weights
from dsmooth.kernels import launch as launching
from dsmooth.kernels import logistic_mixture as kernels
from dsmooth.philox import Stream
from tests.helpers.mixture_cases import n_params
from tests.helpers.triton_tools import (
    Compiled,
    Launch,
    compile_launch,
    left_in_flight,
    matrix_loops,
    record_launches,
    register_operand,
)

MATMULS = {
    "hidden_kernel", "gate_kernel", "hidden_gradient_kernel", "last_gradients_kernel",
    "parameter_gradient_kernel",
}  # fmt: skip
# Bytes that a block may use of an SM's 164 KB (8.0) and 228 KB (9.0), 1 KB of each reserved.
SHARED = {80: 163 * 1024, 90: 227 * 1024}

KERNELS = {expand: ["operands_kernel"], gated_resnet: sorted(MATMULS), weights: ["pack_kernel"]}


@dataclass(frozen=True)
class Block:
    """A gated resnet, forward and backward, with gains."""

    filters: int
    kernel: tuple[int, int] = (2, 3)
    skips: int = 2
    dropout: bool = True
    dtype: torch.dtype = torch.bfloat16
    tf32: bool = False
    size: tuple[int, int, int] = (16, 32, 32)

    def launches(self, arch: int) -> list[Launch]:
        """On a GPU of this capability."""
        f, (kh, kw) = self.filters, self.kernel

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta")

        x, *skips = (_image(self.dtype, f, self.size) for _ in range(1 + self.skips))
        nin = (empty(f, 2 * self.skips * f, 1, 1), empty(f)) if skips else (None, None)
        operands = Operands(
            *(x, *skips, None, None)[:3],
            *(empty(f, 2 * f, kh, kw), empty(f), empty(2 * f, 2 * f, kh, kw), empty(2 * f)),
            *(*nin, empty(f), empty(2 * f), nin[1], None),
            torch.empty((), dtype=torch.int64, device="meta") if self.dropout else None,
        )
        shift: Shift = "none" if kh == 3 else "down" if kw == 3 else "down_right"
        call = GatedResnetCall(shift, *((0.5, 3) if self.dropout else ()), save=True)
        triton, needs = BACKENDS["triton"], [True] * len(operands)
        with ExitStack() as stack:
            enter = stack.enter_context
            patch = enter(pytest.MonkeyPatch.context())
            patch.setattr(launching, "capability_of", lambda device: arch)
            patch.setattr(launching, "allows_tf32", lambda: self.tf32)
            lists = [enter(record_launches(m, *names)) for m, names in KERNELS.items()]
            y, *saved = results = triton.results(operands, call)
            triton.forward(operands, call, results)
            grads = triton.gradients(operands, call, needs)
            triton.backward(operands, call, tuple(saved), y, grads)
        return [launch for launches in lists for launch in launches]


def _image(dtype: torch.dtype, channels: int, size: tuple[int, int, int]) -> Tensor:
    batch, rows, cols = size
    last = torch.channels_last
    return torch.empty(batch, channels, rows, cols, dtype=dtype, device="meta", memory_format=last)


def distinct(launches: list[Launch], *names: str) -> list[Launch]:
    """One launch for each kernel and which of these arguments of it are given."""
    chosen: dict[tuple[object, ...], Launch] = {}
    for launch in launches:
        given = (launch.arguments.get(name) is not None for name in names)
        key = (launch.kernel.__name__, *given)
        chosen[key] = launch
    return list(chosen.values())


def is_matmul(launch: Launch) -> bool:
    return launch.kernel.__name__ in MATMULS


def check(launch: Launch, compiled: Compiled, arch: int) -> None:
    """No spills, resources under their ceilings, tensor cores wherever a matmul can use them."""
    assert compiled.local == compiled.stack == 0
    assert compiled.shared <= SHARED[arch]
    if not is_matmul(launch):
        return
    values = (v[0] if isinstance(v, tuple) else v for v in launch.arguments.values())
    pointer = next(value for value in values if isinstance(value, Tensor))
    geometry = launch.arguments.get("G") or launch.arguments["OUT"]
    numbers = "half" if pointer.dtype.itemsize == 2 else str(geometry.precision)  # "tf32", "ieee"
    used = compiled.count("HMMA") + compiled.count("HGMMA")
    assert (used > 0) == (numbers != "ieee")
    if arch == 90 and numbers == "half":
        assert compiled.count("HGMMA") > 0
    assert not any(register_operand(line) for line in compiled.code)
    filters = launch.arguments.get("F") or launch.arguments["CHANNELS"][0]
    if arch == 90 and numbers == "half" and filters % 8 == 0:
        # No warpgroup copies over what another still multiplies.
        assert all(map(left_in_flight, matrix_loops(compiled.code)))


full = partial(pytest.param, marks=pytest.mark.full)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WEIGHT_KERNELS = {"pack_kernel", "last_gradients_kernel"}


# Every number of filters with every kernel would be nine times as many; between them these have
# each kernel, dtype and kind of float32, with dropout and without, many images and few.
@pytest.mark.parametrize(
    ("block", "arch"),
    [
        (Block(40, (2, 2), skips=1, dropout=False, size=(80, 28, 28)), 90),
        (Block(24, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)), 90),
        full(Block(160, (2, 3), skips=2, size=(64, 32, 32)), 90),
        full(Block(24, (3, 3), skips=0, dtype=FP16), 90),
        full(Block(160, (2, 2), skips=1, dtype=FP32, tf32=True, size=(4, 8, 8)), 90),
        full(Block(40, (3, 3), skips=0, size=(2, 8, 8)), 90),
        full(Block(160, (2, 3)), 80, id="elsewhere"),
        full(Block(24, (2, 2), skips=1, dtype=FP32, tf32=True), 80, id="elsewhere"),
        full(Block(20, (2, 2), skips=1, dtype=FP32), 80, id="elsewhere"),
        full(Block(20, (2, 2), skips=1, dtype=FP32), 90, id="elsewhere"),
        full(Block(40, (2, 3), size=(32, 28, 28)), 80, id="elsewhere"),
    ],
    ids=str,
)
def test_every_matmul(block: Block, arch: int) -> None:
    """On Hopper, and elsewhere: on Ampere, and in float32 without tensor cores."""
    for launch in distinct([launch for launch in block.launches(arch) if is_matmul(launch)]):
        check(launch, compile_launch(launch, arch), arch)


@pytest.mark.parametrize("forms", [(), full(("x", "dy_ptr", "adjoint", "kept_ptr"))])
def test_elementwise_kernels_neither_spill_nor_fail(forms: tuple[str, ...]) -> None:
    """Each kernel in one of its forms, and in all."""
    others = [launch for launch in Block(40).launches(90) if not is_matmul(launch)]
    assert {launch.kernel.__name__ for launch in others} == {"operands_kernel", "pack_kernel"}
    for launch in distinct(others, *forms):
        check(launch, compile_launch(launch, 90), 90)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(
    ("size", "filters", "skips"),
    [((1, 1, 1), 1, 0), ((3, 5, 7), 5, 2), ((4, 8, 8), 24, 1), ((2, 8, 33), 160, 2)],
)
def test_weights_are_packed_and_unpacked_in_registers(size, filters, skips, dtype) -> None:
    """At the numbers of filters that are run on a GPU by the tests."""
    launches = Block(filters, skips=skips, size=size, dtype=dtype).launches(90)
    launches = [x for x in launches if x.kernel.__name__ in WEIGHT_KERNELS]
    assert {launch.kernel.__name__ for launch in launches} == WEIGHT_KERNELS
    for launch in launches:
        check(launch, compile_launch(launch, 90), 90)


SHARED_CEILING = 4096  # bytes of a block: what the sums over components pass between warps


def launch_of(channels, likelihood, atoms, dtype, last, *, n_mix=10) -> Launch:
    x = torch.zeros(2, channels, 28, 28, dtype=dtype)
    params = torch.zeros(2, n_params(channels, n_mix) + 256 * atoms, 28, 28, dtype=dtype)
    if last:
        params = params.to(memory_format=torch.channels_last)
    outputs = torch.empty(2, 28, 28), torch.empty_like(x), torch.empty_like(params)
    with record_launches(kernels, "log_prob_kernel") as launches:
        kernels.log_prob(x, params, *outputs, likelihood, atoms, 0.5)
    return launches[0]


@pytest.mark.parametrize("arch", [90, full(80)])
@pytest.mark.parametrize(
    ("channels", "likelihood", "atoms", "dtype", "last", "more"),
    [  # grey is lighter in all respects, but for atoms
        (3, "discretized", False, FP32, False, {}),
        (1, "discretized", True, BF16, True, {}),
        (3, "continuous", False, BF16, False, {}),
        full(3, "gaussian", False, BF16, True, {}),
        full(1, "discretized", True, FP32, True, {}),
        full(3, "discretized", False, BF16, True, {}),
        full(1, "discretized", True, BF16, False, {}),
        full(3, "continuous", False, FP16, True, {}),
        full(3, "gaussian", False, FP32, False, {}),
        full(1, "continuous", False, FP16, False, {}),
        # Tiles of atoms are read again for each use, so they do not fill the registers.
        (3, "discretized", False, FP32, False, {"n_mix": 1}),
        (1, "discretized", True, BF16, False, {"n_mix": 5}),
        *(full(3, "discretized", False, FP32, False, {"n_mix": n}) for n in (100, 1000)),
        *(full(1, "discretized", True, BF16, False, {"n_mix": n}) for n in (1, 100)),
    ],
    ids=str,
)
def test_value_and_gradient(channels, likelihood, atoms, dtype, last, more, arch) -> None:
    launch = launch_of(channels, likelihood, atoms, dtype, last, **more)
    compiled = compile_launch(launch, arch)
    assert compiled.local == compiled.stack == 0
    assert compiled.shared <= SHARED_CEILING


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


@pytest.mark.parametrize(("arch", "forms"), [(90, False), *(full(a, True) for a in (80, 90, 100))])
def test_words_of_philox(arch: int, forms: bool) -> None:
    """By a tensor of a seed, or also by numbers."""
    number = torch.empty((), dtype=torch.int64, device="meta")
    with record_launches(philox, "image_words_kernel") as launches:
        for seed in (0, 1, 2**64 - 1, number) if forms else (number,):
            where = {"first_index": number, "stream": Stream.DROPOUT, "device": number.device}
            philox.image_words(80, 196, seed=seed, **where)
    for launch in launches:
        compiled = compile_launch(launch, arch)
        assert f".target sm_{arch}" in compiled.ptx
        assert compiled.local == compiled.stack == 0
        assert compiled.shared <= SHARED_CEILING
