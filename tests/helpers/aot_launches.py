"""The launches of the convolution kernels, recorded on tensors without memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dsmooth.functional import Shift, gated_resnet_op
from dsmooth.functional.gated_resnet_operands import Settings
from dsmooth.kernels import expand, gated_resnet, weights
from dsmooth.kernels import launch as launching
from tests.helpers.triton_tools import (
    Compiled,
    Launch,
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
        given = (
            *(x, *skips, None, None)[:3],
            *(empty(f, 2 * f, kh, kw), empty(f), empty(2 * f, 2 * f, kh, kw), empty(2 * f)),
            *(*nin, empty(f), empty(2 * f), nin[1], None),
            torch.empty((), dtype=torch.int64, device="meta") if self.dropout else None,
        )
        shift: Shift = "none" if kh == 3 else "down" if kw == 3 else "down_right"
        settings = Settings(shift, 0.5, 3) if self.dropout else Settings(shift)
        inputs = *given, *settings, "triton", True
        needs = [*[True] * (len(given) - 1), False]
        with ExitStack() as stack:
            enter = stack.enter_context
            patch = enter(pytest.MonkeyPatch.context())
            patch.setattr(launching, "capability_of", lambda device: arch)
            patch.setattr(launching, "allows_tf32", lambda: self.tf32)
            lists = [enter(record_launches(m, *names)) for m, names in KERNELS.items()]
            y, *saved = gated_resnet_op._forward(True, *inputs)
            gated_resnet_op._backward(True, y, *saved, *inputs, needs)
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
