"""The CUDA sampler's kernel, compiled by NVRTC and played where the package launches it.

The package loads PTX on a driver without a card (tests/helpers/stub_driver.py), whose launches are
played. `draw` draws the images of a `Case` so, `draw_on_host` by the worker's emulation on the
host, which adds as `mma.sync` does (host/device_bf16.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsmooth.cuda.compiler import nvrtc
from dsmooth.cuda.driver import Card, Kernel
from dsmooth.cuda.images import compile_kernel
from tests.helpers.builds import ROOT, kept, library
from tests.helpers.stub_driver import StubDriver
from tests.ptx.memory import Memory, Trap
from tests.ptx.player import Player

HOST = Path(__file__).parent / "host"


def compiled_ptx(operands: str) -> str:
    """The kernel's PTX for compute capability 8.0."""
    compiler = nvrtc()
    assert compiler is not None

    def make(folder: Path) -> None:
        ptx, _ = compile_kernel(compiler, "compute_80", operands)
        (folder / "kernel.ptx").write_bytes(ptx.rstrip(b"\0"))

    return (kept(f"{compiler.version} {operands}".encode(), make) / "kernel.ptx").read_text()


class HostLibrary:
    """The host's side in C++ (host/sampler.cpp). Raises RuntimeError where that throws."""

    def __init__(self) -> None:
        source = ROOT / "csrc" / "sampler"
        parts = ("program/program.cpp", "program/skeleton.cpp", "cuda/sampler.cpp")
        files = [HOST / "sampler.cpp", *(source / part for part in parts)]
        self.library = ctypes.CDLL(str(library("sampler.so", "-std=c++20", "-O1", sources=files)))

    def call(self, function: str, *arguments: Any, result: Any = None) -> Any:
        found, error = self.library[function], self.library.error_of_last_call
        found.restype, error.restype = result, ctypes.c_char_p
        value = found(*arguments)
        if words := error():
            raise RuntimeError(words.decode())
        return value

    @contextmanager
    def sampler(self, case: Case, card: Card) -> Iterator[Callable[..., Any]]:
        """Functions of a sampler of the case on a card, to be called by name."""
        made = ctypes.c_void_p(
            self.call(
                "make_sampler", ctypes.byref(case), card.processors, card.shared_per_block,
                result=ctypes.c_void_p,
            )
        )  # fmt: skip

        def call(function: str, *arguments: Tensor | int | None, result: Any = None) -> Any:
            places = (
                c_int64(value) if isinstance(value, int)
                else ctypes.c_void_p(None if value is None else value.data_ptr())
                for value in arguments
            )  # fmt: skip
            return self.call(function, made, *places, result=result)

        try:
            yield call
        finally:
            self.library.free_sampler(made)

    def launch_all(
        self, kernel: Kernel, call: Callable[..., Any], tensors: Sequence[Tensor | None]
    ) -> None:
        """Launch the kernel as CachedSampler does."""
        blocks, shared = call("blocks", result=c_int64), call("shared_bytes", result=c_int64)
        argument = torch.empty(call("argument_bytes", result=c_int64), dtype=torch.uint8)
        for i in range(call("launches", result=c_int64)):
            call("write_argument", i, *tensors, argument)
            kernel.launch(blocks, 256, shared, argument.numpy().tobytes(), stream=0)


class CudaPlayer:
    """A card whose launches of a case's kernel are played."""

    def __init__(self, stub: StubDriver, case: Case) -> None:
        stub.set_card(8, 0, 163 << 10)
        stub.state.processors = 1
        stub.launched = self._launched
        self.host, self.stub, self.card, self.case = HostLibrary(), stub, Card(0), case
        self.memory = Memory()
        ptx = compiled_ptx("bfloat16" if case.bf16 else "float32")
        self.kernel = Kernel(self.card, ptx.encode())
        self.player = Player(ptx, self.memory)

    def _launched(self, grid: list[int], block: list[int], shared: int, argument: int) -> None:
        (parameter,) = self.player.functions["sample"].parameters
        data = ctypes.string_at(argument, parameter.size)
        self.player.launch("sample", grid, block, data, shared)


CONDITIONING = ("none", "stack", "concat")
LIKELIHOOD = ("continuous", "discretized", "gaussian")
USUAL = {
    "filters": 4, "channels": 1, "height": 4, "width": 4, "n": 2, "seed": (3 << 32) + 7,
    "first_index": (1 << 32) - 1, "temperature": 1.0,
}  # fmt: skip


class Case(ctypes.Structure):
    """A program of csrc/tests/sampler_toy.h and what to draw of it, as in host/sampler.cpp."""

    _fields_ = (
        ("filters", ctypes.c_int), ("channels", ctypes.c_int), ("conditioning", ctypes.c_int),
        ("likelihood", ctypes.c_int), ("atoms", ctypes.c_int), ("features", ctypes.c_int),
        ("hidden", ctypes.c_int),
        ("bf16", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int),
        ("n", c_int64), ("seed", ctypes.c_uint64), ("first_index", ctypes.c_uint64),
        ("temperature", ctypes.c_float), ("max_slice", ctypes.c_int),
        ("n_classes", ctypes.c_int), ("completes", ctypes.c_int),
        ("guidance", ctypes.c_float),
    )  # fmt: skip


def make_case(
    conditioning: str = "none",
    likelihood: str = "continuous",
    **fields: float,
) -> Case:
    named = {
        "conditioning": CONDITIONING.index(conditioning),
        "likelihood": LIKELIHOOD.index(likelihood),
    }  # fmt: skip
    return Case(**USUAL | fields | named)


def context_of(case: Case) -> Tensor | None:
    if CONDITIONING[case.conditioning] == "none":
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


def labels_of(case: Case) -> Tensor | None:
    """A label for each image: every class, and none."""
    return torch.arange(case.n) % (case.n_classes + 1) - 1 if case.n_classes else None


class Drawn(NamedTuple):
    """Images (n, C, H, W), and the bytes of the workspace, all ones where nobody wrote."""

    images: Tensor
    workspace: Tensor


def draw(player: CudaPlayer) -> Drawn:
    """Images that the compiled kernel draws."""
    memory, case = player.memory, player.case
    with memory.borrowed(), player.host.sampler(case, player.card) as call:
        weights = memory.empty((call("weight_bytes", result=c_int64),), torch.uint8)
        call("write_weights", weights)
        memory.mark(weights, memory.INPUT)
        workspace = memory.empty((call("workspace_bytes", result=c_int64),), torch.uint8)
        known, mask = known_of(case)
        out = (
            memory.empty(known.shape, once=True)
            if mask is None
            else memory.place(known, writable=True)
        )
        context, places, labels = (
            None if t is None else memory.place(t)
            for t in (context_of(case), mask, labels_of(case))
        )
        tensors = (context, out, places, labels, workspace)
        with player.stub.raised():
            player.host.launch_all(player.kernel, call, tensors)
        if mask is None and not memory.written(out).all():
            raise Trap("a pixel that nobody drew")
        return Drawn(out.clone(), workspace.clone())


def draw_on_host(player: CudaPlayer) -> Drawn:
    """The same by the worker's emulation on the host."""
    out, mask = known_of(player.case)
    context, labels = context_of(player.case), labels_of(player.case)
    with player.host.sampler(player.case, player.card) as call:
        workspace = torch.empty(call("workspace_bytes", result=c_int64), dtype=torch.uint8)
        call("draw_on_host", context, out, mask, labels, workspace)
    return Drawn(out, workspace)
