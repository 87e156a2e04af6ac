"""The CUDA sampler's kernels, compiled by nvcc and played where their own host code launches them.

The .cu files and the C++ around them are built into one library with a runtime that has no device
(host/runtime.cpp); the kernels are played from the PTX of that very compilation. `draw` draws the
images of a `Case` by them, `draw_on_host` by the worker's emulation on the host, which adds as
`mma.sync` does (host/device_bf16.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.helpers.nvcc_builds import ROOT, compiled
from tests.ptx.memory import Memory, Trap
from tests.ptx.player import Player

HOST = Path(__file__).parent / "host"
LAUNCHED = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


def build_sampler() -> Path:
    """Folder of the library and of the PTX of its kernels, a file for each type of operands.

    Raises CalledProcessError with the compiler's words.
    """
    source = ROOT / "csrc" / "sampler"
    host = [*sorted(source.glob("program/*.cpp")), *sorted(source.glob("cuda/*.cpp"))]
    files = [HOST / "runtime.cpp", *sorted(source.glob("cuda/*.cu"))]
    files += [HOST / "sampler.cpp", *host]
    return compiled(
        *("-std=c++20", "-O3", "-gencode", "arch=compute_80,code=compute_80", "-shared"),
        *("-Xcompiler", "-fPIC,-O1", "-Xlinker", "-Bsymbolic", "-cudart", "none"),
        *("-diag-suppress", "20012,20014", "--threads", "2", "--keep", "-o", "sampler.so"),
        sources=files,
    )


class Played(ctypes.Structure):
    """The runtime, as a test sees it (host/runtime.cpp)."""

    _fields_ = (
        ("launched", LAUNCHED), ("processors", ctypes.c_int), ("current", ctypes.c_int),
        ("failing", ctypes.c_char_p), ("failure", ctypes.c_int), ("last_error", ctypes.c_int),
        ("carve_out", ctypes.c_int),
    )  # fmt: skip


class HostLibrary:
    """The host's side, whose launches `launched` gets. Raises RuntimeError where C++ throws, and
    what `launched` raises."""

    def __init__(self, built: Path, processors: int = 1) -> None:
        self.library = ctypes.CDLL(str(built / "sampler.so"))
        self.played = Played.in_dll(self.library, "played")
        self._failure: BaseException | None = None
        self._callback = LAUNCHED(self._launched)
        ctypes.pointer(self.played)[0] = Played(self._callback, processors, failing=b"")

    def call(self, function: str, *arguments: Any, result: Any = None) -> Any:
        found, error = self.library[function], self.library.error_of_last_call
        found.restype, error.restype = result, ctypes.c_char_p
        self.played.launched = self._callback  # another's may be there
        value = found(*arguments)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if words := error():
            raise RuntimeError(words.decode())
        return value

    @contextmanager
    def sampler(self, case: Case, device: int = 0) -> Iterator[Callable[..., Any]]:
        """Functions of a sampler of the case, to be called by name."""
        pointer = ctypes.c_void_p
        made = pointer(self.call("make_sampler", ctypes.byref(case), device, result=pointer))

        def call(function: str, *tensors: Tensor | None, result: Any = None) -> Any:
            places = (pointer(None if t is None else t.data_ptr()) for t in tensors)
            return self.call(function, made, *places, result=result)

        try:
            yield call
        finally:
            self.library.free_sampler(made)

    def launched(self, name: str, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        raise NotImplementedError

    def _launched(self, name: bytes, *rest: Any) -> None:
        if self._failure is not None:
            return  # a launch before has failed
        try:
            self.launched(name.decode(), *rest)
        except BaseException as error:  # comes out of `call`
            self._failure = error


class CudaPlayer(HostLibrary):
    """A library whose launches are played."""

    def __init__(self, built: Path, case: Case) -> None:
        super().__init__(built)
        ptx = built / f"{'bfloat16' if case.bf16 else 'float32'}.ptx"
        self.memory, self.case = Memory(), case
        self.player = Player(ptx.read_text(), self.memory)

    def launched(self, name: str, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        entry, data = self.player.functions[name], b""
        for i, parameter in enumerate(entry.parameters):
            data += bytes(-len(data) % parameter.alignment)
            data += ctypes.string_at(arguments[i], parameter.size)
        self.player.launch(entry.name, grid[:3], block[:3], data, shared)


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
        ("likelihood", ctypes.c_int), ("n_atoms", ctypes.c_int), ("features", ctypes.c_int),
        ("hidden", ctypes.c_int), ("atoms", ctypes.c_int * 8),
        ("bf16", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int),
        ("n", ctypes.c_int64), ("seed", ctypes.c_uint64), ("first_index", ctypes.c_uint64),
        ("temperature", ctypes.c_float), ("max_slice", ctypes.c_int),
        ("condition_size", ctypes.c_int), ("completes", ctypes.c_int),
        ("guidance", ctypes.c_float),
    )  # fmt: skip


def make_case(
    conditioning: str = "none",
    likelihood: str = "continuous",
    atoms: Sequence[int] = (),
    **fields: float,
) -> Case:
    named = {
        "conditioning": CONDITIONING.index(conditioning),
        "likelihood": LIKELIHOOD.index(likelihood),
        "n_atoms": len(atoms), "atoms": (ctypes.c_int * 8)(*(atoms if len(atoms) <= 8 else ())),
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


def condition_of(case: Case) -> Tensor | None:
    """A vector for each image."""
    if case.condition_size == 0:
        return None
    count = torch.arange(case.n * case.condition_size, dtype=torch.float32)
    return torch.cos(1.3 * count).view(case.n, -1)


class Drawn(NamedTuple):
    """Images (n, C, H, W), and the bytes of the workspace, all ones where nobody wrote."""

    images: Tensor
    workspace: Tensor


def draw(player: CudaPlayer) -> Drawn:
    """Images that the compiled kernel draws."""
    memory, case = player.memory, player.case
    with memory.borrowed(), player.sampler(case) as call:
        weights = memory.empty((call("weight_bytes", result=ctypes.c_int64),), torch.uint8)
        call("write_weights", weights)
        memory.mark(weights, memory.INPUT)
        workspace = memory.empty((call("workspace_bytes", result=ctypes.c_int64),), torch.uint8)
        known, mask = known_of(case)
        out = (
            memory.empty(known.shape, once=True)
            if mask is None
            else memory.place(known, writable=True)
        )
        context, places, condition = (
            None if t is None else memory.place(t)
            for t in (context_of(case), mask, condition_of(case))
        )
        call("draw", context, out, places, condition, workspace)
        if mask is None and not memory.written(out).all():
            raise Trap("a pixel that nobody drew")
        return Drawn(out.clone(), workspace.clone())


def draw_on_host(player: CudaPlayer) -> Drawn:
    """The same by the worker's emulation on the host."""
    out, mask = known_of(player.case)
    context, condition = context_of(player.case), condition_of(player.case)
    with player.sampler(player.case) as call:
        workspace = torch.empty(call("workspace_bytes", result=ctypes.c_int64), dtype=torch.uint8)
        call("draw_on_host", context, out, mask, condition, workspace)
    return Drawn(out, workspace)
