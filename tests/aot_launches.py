"""The launches of the convolution kernels, recorded on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor

from dsmooth.kernels import dropout, gated_resnet, shifted_conv, weights
from dsmooth.kernels import launch as launching
from dsmooth.kernels.geometry import Taps
from dsmooth.kernels.tilings import MatmulTiling
from tests.triton_tools import Compiled, Launch, record_launches

MATMULS = {
    "hidden_kernel", "gate_kernel", "data_gradient_kernel", "conv_kernel",
    "conv_transposed_kernel", "weight_gradient_kernel",
}  # fmt: skip
# Half the registers of a thread's 255 would let two blocks of 4 warps share a quarter of an SM; the
# matmuls take more, so what counts is that nothing spills.
REGISTERS = 255
# An SM has 164 KB (8.0) and 228 KB (9.0) for its blocks, 1 KB of each reserved: two fit.
SHARED = {80: 80 * 1024, 90: 112 * 1024}

KERNELS = {
    gated_resnet: ["hidden_kernel", "gate_kernel", "data_gradient_kernel"],
    shifted_conv: ["conv_kernel", "conv_transposed_kernel", "weight_gradient_kernel"],
    dropout: ["kept_kernel"],
    weights: ["pack_kernel", "unpack_kernel"],
}


@contextmanager
def recorded(arch: int, tf32: bool) -> Iterator[list[list[Launch]]]:
    """Inside the block launchers see a GPU of capability `arch` and only record their launches."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(launching, "capability_of", lambda device: arch)
        patch.setattr(launching, "allows_tf32", lambda: tf32)
        yield [stack.enter_context(record_launches(m, *names)) for m, names in KERNELS.items()]


def gated_launches(
    arch: int, dtype: torch.dtype, filters: int, tf32: bool, kernel: tuple[int, int] = (2, 3)
) -> list[Launch]:
    """Forward and backward of a block with two skips, dropout and gains, 16 images of 32x32."""
    f, (kh, kw) = filters, kernel
    x, skips = _image(dtype, f), [_image(dtype, f), _image(dtype, f)]
    shapes = [(f, 2 * f, kh, kw), (f,), (2 * f, 2 * f, kh, kw), (2 * f,), (f, 4 * f, 1, 1), (f,)]
    parameters = [torch.empty(shape, device="meta") for shape in shapes]
    seed = torch.empty((), dtype=torch.int64, device="meta")
    taps = Taps(kh, kw, kh - 1, kw // 2)
    rest = (skips, parameters, parameters[1::2], seed, taps, (2**22, 2.0), 3)
    with recorded(arch, tf32) as lists:
        y, h = gated_resnet.forward(x, *rest)
        gated_resnet.backward(y, x, h, *rest)
    return [launch for launches in lists for launch in launches]


def shifted_launches(
    arch: int, dtype: torch.dtype, filters: int, tf32: bool, kernel: tuple[int, int] = (2, 3)
) -> list[Launch]:
    """Forward and backward of a stride-2 and of a transposed convolution."""
    f, (kh, kw) = filters, kernel
    x = _image(dtype, f)
    weight, bias = (torch.empty(shape, device="meta") for shape in ((f, f, kh, kw), (f,)))
    with recorded(arch, tf32) as lists:
        taps = Taps(kh, kw, kh - 1, kw // 2, 2)
        y = shifted_conv.forward(x, weight, bias, taps, 16, 16)
        shifted_conv.backward(y, x, weight, taps, False)
        taps = Taps(kh, kw, 0, (kw - 1) // 2, 2)
        x = shifted_conv.forward_transposed(y, weight, bias, taps, 32, 32)
        shifted_conv.backward(x, y, weight, taps, True)
    return [launch for launches in lists for launch in launches]


def _image(dtype: torch.dtype, channels: int) -> Tensor:
    last = torch.channels_last
    return torch.empty(16, channels, 32, 32, dtype=dtype, device="meta", memory_format=last)


def tiling_of(launch: Launch) -> MatmulTiling:
    blocks = (launch.arguments[f"BLOCK_{letter}"] for letter in "PNK")
    return MatmulTiling(*blocks, launch.options["num_warps"], launch.options["num_stages"])


def distinct(launches: list[Launch], *constants: str) -> list[Launch]:
    """One launch for each kernel and value of these constants of it."""
    chosen: dict[tuple[object, ...], Launch] = {}
    for launch in launches:
        key = (launch.kernel.__name__, *(launch.arguments.get(name) for name in constants))
        chosen[key] = launch
    return list(chosen.values())


def is_matmul(launch: Launch) -> bool:
    return launch.kernel.__name__ in MATMULS


def check(launch: Launch, compiled: Compiled, arch: int, tensor_cores: bool) -> None:
    """No spills, resources under their ceilings, and tensor cores where a matmul can use them."""
    assert compiled.local == compiled.stack == 0
    assert compiled.registers <= REGISTERS
    assert compiled.shared <= SHARED[arch]
    if is_matmul(launch):
        assert launch.options["num_warps"] <= 4
        used = compiled.count("HGMMA") if arch == 90 else compiled.count("HMMA")
        assert (used > 0) == tensor_cores
