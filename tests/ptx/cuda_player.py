"""CUDA kernels compiled by nvcc and played where their own host code launches them.

The .cu file and the C++ around it are built into one library with a runtime that has no device
(host/runtime.cpp); the kernels are played from the PTX of that very compilation.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.nvcc_builds import ROOT, compiled
from tests.ptx.memory import Memory
from tests.ptx.parse import Module, parse
from tests.ptx.player import Player

HOST = Path(__file__).parent / "host"
# Sources of the CPU's sampler, not needed here.
CPU_ONLY = {"sampler_cpu", "tile_kernels", "tiles_float32", "tiles_bfloat16"}
LAUNCHED = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A library of host code, and the PTX of its kernels."""

    library: Path
    ptx: str
    completion: str = ""  # of the sampler's kernels that keep known pixels


def build_sampler() -> Built:
    """Raises CalledProcessError with the compiler's words."""
    source = ROOT / "csrc" / "sampler"
    host = [path for path in sorted(source.glob("*.cpp")) if path.stem not in CPU_ONLY]
    names = ("sampler_cuda", "completion_cuda")
    files = [HOST / "runtime.cpp", *(source / f"{name}.cu" for name in names)]
    files += [HOST / "sampler.cpp", *host]
    folder = compiled(
        *("-std=c++20", "-O3", "-gencode", "arch=compute_80,code=compute_80", "-shared"),
        *("-Xcompiler", "-fPIC,-O1", "-Xlinker", "-Bsymbolic", "-cudart", "none"),
        *("-diag-suppress", "20012,20014", "--threads", "2", "--keep", "-o", "sampler.so"),
        sources=files,
    )
    return Built(folder / "sampler.so", *((folder / f"{n}.ptx").read_text() for n in names))


class CudaPlayer:
    """A library whose launches are played. What a launch raises comes out of `call`.

    processors: multiprocessors that the device says it has.
    """

    def __init__(
        self, built: Built, memory: Memory, ptx: str | Module, processors: int = 1
    ) -> None:
        self.library = ctypes.CDLL(str(built.library))
        module = parse(ptx) if isinstance(ptx, str) else ptx
        self.player, self.memory = Player(module, memory), memory
        self.processors = processors
        self._failure: BaseException | None = None
        self._callback = LAUNCHED(self._launched)

    def call(self, function: str, *arguments: Any, result: Any = None) -> Any:
        found = self.library[function]
        found.restype = result
        self.library.play_launches(self._callback, self.processors)
        value = found(*arguments)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return value

    def _launched(self, name: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> None:
        if self._failure is not None:
            return  # a launch before has failed
        try:
            entry = self.player.entry(name.decode())
            data, at = b"", 0
            for i, parameter in enumerate(entry.parameters):
                data += bytes(-at % parameter.alignment)
                data += ctypes.string_at(arguments[i], parameter.size)
                at = len(data)
            self.player.launch(entry.name, grid[:3], block[:3], data, shared)
        except BaseException as error:  # comes out of `call`
            self._failure = error
