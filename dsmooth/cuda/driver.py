"""The CUDA driver by ctypes: a card's limits, and a kernel that is loaded there.

The driver's library is opened at the first use, so the extension links none. The context is the
device's primary one, which torch uses too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from typing import Any

LIBRARY = "libcuda.so.1"
ENTRY = b"sample"  # of csrc/sampler/cuda/sample.cu
OLDEST = (8, 0)  # compute capability: mma.sync of bfloat16

# The functions used, as cuda.h declares them. Each returns a status, 0 for success.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuModuleLoadDataEx": (POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
}

# CUdevice_attribute
PROCESSORS, MAJOR, MINOR, SHARED_PER_BLOCK = 16, 75, 76, 97
# CUfunction_attribute
STATIC_SHARED, MOST_DYNAMIC_SHARED = 1, 8
# CUjit_option: a buffer for the errors of compiling PTX, and its size
JIT_ERRORS, JIT_ERRORS_SIZE = 5, 6
# CUresult that a newer driver would mend: no code for the device, an image or PTX it cannot read
NOT_UNDERSTOOD = {200, 209, 218, 222}


class CudaError(RuntimeError):
    """A call of the driver or of the compiler failed, or there is none."""


@cache
def library() -> ctypes.CDLL:
    """The driver of this machine. Raises CudaError if there is none."""
    try:
        found = ctypes.CDLL(LIBRARY)
        for name, types in FUNCTIONS.items():
            getattr(found, name).argtypes = types
    except (OSError, AttributeError) as error:  # a driver that is too old lacks functions
        raise CudaError(f"no NVIDIA driver can be used ({error})") from None
    return found


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver. Raises CudaError with its name and the driver's words."""
    status = getattr(library(), name)(*arguments)
    if status == 0:
        return
    words, version, advice = c_char_p(), c_int(), ""
    library().cuGetErrorString(status, ctypes.byref(words))
    library().cuDriverGetVersion(ctypes.byref(version))
    if status in NOT_UNDERSTOOD:
        advice = f"; the driver is of CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    said = (words.value or b"error %d" % status).decode(errors="replace")
    raise CudaError(f"{name}: {said}{advice}")


def get(kind: Any, name: str, *arguments: Any) -> Any:
    """What a function of the driver writes to its first argument, of a ctypes type."""
    result = kind()
    call(name, ctypes.byref(result), *arguments)
    return result.value


class Card:
    """A CUDA device by torch's index: its limits, and its context.

    Raises CudaError if there is none, or it is too old for the kernel.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        call("cuInit", 0)
        self._device = get(c_int, "cuDeviceGet", index)
        major, minor, self.processors, self.shared_per_block = (
            get(c_int, "cuDeviceGetAttribute", number, self._device)
            for number in (MAJOR, MINOR, PROCESSORS, SHARED_PER_BLOCK)
        )
        self.capability = major, minor
        if self.capability < OLDEST:
            raise CudaError(
                f"cuda:{index} has compute capability {major}.{minor}, and the sampler needs "
                f"{OLDEST[0]}.{OLDEST[1]}"
            )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside the block the device's primary context is the one of this thread."""
        call("cuCtxPushCurrent_v2", _primary_context(self._device))
        try:
            yield
        finally:
            get(c_void_p, "cuCtxPopCurrent_v2")


@cache
def _primary_context(device: int) -> int:
    """Retained once, for as long as the process lives, as torch does."""
    return int(get(c_void_p, "cuDevicePrimaryCtxRetain", device))


class Kernel:
    """The sampler's kernel on a card. Raises CudaError if the card cannot load the image.

    image: machine code or PTX. shared_limit: bytes of shared memory that a launch may ask for.
    """

    def __init__(self, card: Card, image: bytes) -> None:
        self.card = card
        errors = ctypes.create_string_buffer(1 << 12)
        options = (c_int * 2)(JIT_ERRORS, JIT_ERRORS_SIZE)
        values = (c_void_p * 2)(ctypes.addressof(errors), len(errors))
        with card.current():
            try:
                module = get(c_void_p, "cuModuleLoadDataEx", image, len(options), options, values)
            except CudaError as error:
                log = " ".join(errors.value.decode(errors="replace").split())
                raise CudaError(f"{error}{log and f' ({log})'}") from None
            self._function = get(c_void_p, "cuModuleGetFunction", module, ENTRY)
            # Code of CUDA 13 for sm_90 and later has 1,024 bytes of its own.
            static = get(c_int, "cuFuncGetAttribute", STATIC_SHARED, self._function)
            self.shared_limit = card.shared_per_block - static
            limit = MOST_DYNAMIC_SHARED, self.shared_limit
            call("cuFuncSetAttribute", self._function, *limit)

    def launch(
        self, blocks: int, lanes: int, shared_bytes: int, argument: bytes, stream: int
    ) -> None:
        """Launch a grid on a stream, a cudaStream_t. argument: of the kernel, by value."""
        copy = ctypes.create_string_buffer(argument, len(argument))
        arguments = (c_void_p * 1)(ctypes.addressof(copy))
        sizes = (blocks, 1, 1, lanes, 1, 1, shared_bytes)
        with self.card.current():
            call("cuLaunchKernel", self._function, *sizes, stream, arguments, None)
