"""A CUDA driver without a card (stub_driver.c), which the package loads in the place of libcuda."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_uint, c_void_p
from pathlib import Path
from typing import Any

import pytest

from dsmooth import cuda
from dsmooth.cuda import compiler, driver, images
from tests.helpers.builds import library

LOADED = ctypes.CFUNCTYPE(c_int, c_void_p)
LAUNCHED = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(c_uint), ctypes.POINTER(c_uint), c_uint, c_void_p
)  # fmt: skip
CACHES = (driver.library, driver._primary_context, cuda._load, compiler.nvrtc)


class State(ctypes.Structure):
    """As in stub_driver.c."""

    _fields_ = (
        ("version", c_int), ("major", c_int), ("minor", c_int), ("processors", c_int),
        ("shared_per_block", c_int), ("failing", c_char_p), ("failure", c_int),
        ("contexts", c_int), ("static_shared", c_int), ("most_dynamic_shared", c_int),
        ("stream", c_void_p), ("loaded", LOADED), ("launched", LAUNCHED),
    )  # fmt: skip


Launched = Callable[[list[int], list[int], int, int], None]


class StubDriver:
    """A card of some capability. Each launch goes to `launched`: grid, block, bytes of shared
    memory, address of the argument. What it raises comes out of `raised`."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        self.path = library("stub_driver.so", "-xc", sources=[here / "stub_driver.c"])
        self.state = State.in_dll(ctypes.CDLL(str(self.path)), "state")
        self.launched: Launched = lambda *launch: self.launches.append(launch)
        self.launches: list[tuple[Any, ...]] = []
        self.refused: dict[bytes, int] = {}  # statuses by the beginning of an image
        self.failure: BaseException | None = None
        self._callbacks = LOADED(self._load), LAUNCHED(self._launch)
        ctypes.pointer(self.state)[0] = State(
            12040, 9, 0, 3, 227 << 10, None, 0, 0, 1024, 0, None, *self._callbacks
        )

    def set_card(self, major: int, minor: int, shared_per_block: int = 227 << 10) -> None:
        self.state.major, self.state.minor = major, minor
        self.state.shared_per_block = shared_per_block

    def fail(self, function: str, status: int) -> None:
        self.state.failing, self.state.failure = function.encode(), status

    def _load(self, image: int) -> int:
        content = ctypes.string_at(image, 4)
        return next((s for start, s in self.refused.items() if content.startswith(start)), 0)

    def _launch(self, grid: Any, block: Any, shared: int, argument: int) -> None:
        try:
            self.launched(grid[:3], block[:3], shared, argument)
        except BaseException as error:  # which ctypes would only print
            self.failure = error

    @contextmanager
    def raised(self) -> Iterator[None]:
        yield
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure


@contextmanager
def stub_driver(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[StubDriver]:
    """Inside the block it is the package's driver, with a cache and packaged images in a folder."""
    stub = StubDriver()
    patch.setattr(driver, "LIBRARY", str(stub.path))
    patch.setattr(images, "PACKAGED", folder / "packaged")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "packaged").mkdir()
    for function in CACHES:
        function.cache_clear()
    yield stub
    for function in CACHES:
        function.cache_clear()
