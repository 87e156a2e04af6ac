"""Small programs of the CUDA sampler, drawn by its compiled kernels and by the host."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.ptx.cuda_player import CudaPlayer
from tests.ptx.layout import Trap

CONDITIONING = {"none": 0, "stack": 1, "concat": 2}
LIKELIHOOD = {"continuous": 0, "discretized": 1, "gaussian": 2}


class Case(ctypes.Structure):
    """A program of csrc/tests/sampler_toy.h and what to draw of it, as in host/sampler.cpp."""

    _fields_ = (
        ("filters", ctypes.c_int), ("channels", ctypes.c_int), ("conditioning", ctypes.c_int),
        ("likelihood", ctypes.c_int), ("n_atoms", ctypes.c_int), ("atoms", ctypes.c_int * 8),
        ("bf16", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int),
        ("n", ctypes.c_int64), ("seed", ctypes.c_uint64), ("first_index", ctypes.c_uint64),
        ("temperature", ctypes.c_float), ("max_slice", ctypes.c_int), ("completes", ctypes.c_int),
    )  # fmt: skip


def make_case(
    filters: int = 4,
    channels: int = 1,
    conditioning: str = "none",
    likelihood: str = "continuous",
    atoms: Sequence[int] = (),
    *,
    bf16: bool = False,
    size: tuple[int, int] = (4, 4),
    n: int = 2,
    temperature: float = 1.0,
    max_slice: int = 0,
    completes: bool = False,
) -> Case:
    return Case(
        filters, channels, CONDITIONING[conditioning], LIKELIHOOD[likelihood], len(atoms),
        (ctypes.c_int * 8)(*atoms), bf16, *size, n, (3 << 32) + 7, (1 << 32) - 1, temperature,
        max_slice, completes,
    )  # fmt: skip


def context_of(case: Case) -> Tensor | None:
    if case.conditioning == CONDITIONING["none"]:
        return None
    shape = (case.n, case.channels, case.height, case.width)
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
    return torch.sin(0.7 * count).view(shape)


def known_of(case: Case) -> tuple[Tensor, Tensor | None]:
    """Memory for the images, NaN where a pixel is to be drawn, and the mask of known ones.

    The second row is known in all images, and of the others every third pixel.
    """
    shape = (case.n, case.channels, case.height, case.width)
    out = torch.full(shape, torch.nan)
    if not case.completes:
        return out, None
    place = torch.arange(case.n * case.height * case.width).view(case.n, case.height, case.width)
    mask = place % 3 == 0
    mask[:, 1] = True
    known = torch.cos(0.3 * torch.arange(out.numel(), dtype=torch.float32)).view(shape)
    return torch.where(mask[:, None], known, out), mask.view(torch.uint8)


def draw(player: CudaPlayer, case: Case) -> Tensor:
    """The images (n, C, H, W) as the compiled kernel draws them."""
    memory = player.memory
    pointer = ctypes.c_void_p
    context = context_of(case)
    with memory.borrowed():
        sampler = pointer(player.call("make_sampler", ctypes.byref(case), result=pointer))
        assert sampler.value is not None, "the sampler refuses the case"
        try:
            size = player.call("weight_bytes", sampler, result=ctypes.c_int64)
            weights = memory.empty((size,), torch.uint8)
            player.call("write_weights", sampler, pointer(weights.data_ptr()))
            memory.mark(weights, memory.INPUT)
            size = player.call("workspace_bytes", sampler, result=ctypes.c_int64)
            workspace = memory.empty((size,), torch.uint8)
            known, mask = known_of(case)
            out = (
                memory.empty(known.shape, once=True)
                if mask is None
                else memory.place(known, writable=True)
            )
            given = None if context is None else memory.place(context).data_ptr()
            places = None if mask is None else memory.place(mask).data_ptr()
            player.call(
                "draw", sampler, pointer(given), pointer(out.data_ptr()), pointer(places),
                pointer(workspace.data_ptr()),
            )  # fmt: skip
            if mask is None and not memory.written(out).all():
                raise Trap("a pixel that nobody drew")
            return out.clone()
        finally:
            player.call("free_sampler", sampler)


def draw_on_host(player: CudaPlayer, case: Case) -> Tensor:
    """The same by the worker's emulation on the host."""
    context = context_of(case)
    out, mask = known_of(case)
    given, places = (None if t is None else t.data_ptr() for t in (context, mask))
    pointer = ctypes.c_void_p
    player.call(
        "draw_on_host", ctypes.byref(case), pointer(given), pointer(out.data_ptr()), pointer(places)
    )
    return out
