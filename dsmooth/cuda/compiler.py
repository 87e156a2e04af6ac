"""NVRTC, the compiler of CUDA kernels that comes with every CUDA build of torch, by ctypes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .driver import CudaError


class Nvrtc:
    """The library at `path`: its version, the architectures that it compiles for, 80 for sm_80."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self.path = path
        major, minor = c_int(), c_int()
        self._call("nvrtcVersion", byref(major), byref(minor))
        self.version = f"{major.value}.{minor.value}"
        count = c_int()
        self._call("nvrtcGetNumSupportedArchs", byref(count))
        architectures = (c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", architectures)
        self.architectures = list(architectures)

    def target_for(self, capability: tuple[int, int]) -> str:
        """The best architecture for a card: "sm_90", or "compute_90" if only PTX will serve."""
        card = 10 * capability[0] + capability[1]
        best = max((number for number in self.architectures if number <= card), default=0)
        return f"{'sm' if best // 10 == capability[0] else 'compute'}_{best}"

    def compile(
        self, path: Path, headers: Mapping[str, bytes], options: Sequence[str], *, ptx: bool
    ) -> tuple[bytes, str]:
        """Machine code, or PTX, of a source file, and what the compiler said.

        headers: further files by their names. Raises CudaError with the compiler's first line.
        """
        program = c_void_p()
        names = (c_char_p * len(headers))(*[name.encode() for name in headers])
        texts = (c_char_p * len(headers))(*headers.values())
        words = (c_char_p * len(options))(*[option.encode() for option in options])
        source = path.read_bytes()
        self._call(
            "nvrtcCreateProgram", byref(program), source, path.name.encode(),
            len(headers), texts, names,
        )  # fmt: skip
        try:
            status = self._library.nvrtcCompileProgram(program, len(options), words)
            log = self._result("ProgramLog", program).decode(errors="replace").strip("\0\n")
            if status:
                raise CudaError(log.splitlines()[0] if log else f"status {status}")
            return self._result("PTX" if ptx else "CUBIN", program), log
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _result(self, name: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._call(f"nvrtcGet{name}Size", program, byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{name}", program, data)
        return data.raw

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise CudaError(f"{name} failed with status {status}")


def libraries() -> Iterator[str]:
    """Where NVRTC may be: in torch's wheels, its folder or its environment, or in the system."""
    major = (torch.version.cuda or "").partition(".")[0]
    name = f"libnvrtc.so.{major}" if major else "libnvrtc.so"
    wheels = find_spec("nvidia")
    for folder in (wheels and wheels.submodule_search_locations) or ():
        yield from map(str, Path(folder).glob(f"*/lib/{name}*"))
    for place in (Path(torch.__file__).parent, Path(sys.prefix)):
        yield from map(str, place.glob(f"lib/libnvrtc[.-]*so*{major}*"))
    yield name


@cache
def nvrtc() -> Nvrtc | None:
    """The first that can be opened, or None."""
    for path in libraries():
        try:
            return Nvrtc(path)
        except (OSError, CudaError):
            continue
    return None
