"""`dsmooth doctor`: the installation, the build with its reasons, and a self-test."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import torch

from .. import _extension
from ..cuda import describe_cuda
from ..cuda.compiler import nvrtc
from ..functional import logistic_mixture_log_prob
from ..machine import cpu_name
from ..philox import philox4x32
from .options import Doctor

_PHILOX_ZERO = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # counter and key all zero


def doctor(options: Doctor | None = None) -> int:
    """Run `dsmooth doctor`; 1 if the self-test failed, not for a missing extension."""
    print(*describe(), sep="\n")
    checks = {"Philox": _philox_is_right()}
    if _extension.unavailable_reason() is None:
        checks["loss and gradient, native against reference"] = _native_is_right()
    for name, passed in checks.items():
        print(f"self-test: {name}: {'ok' if passed else 'failed'}")
    return 0 if all(checks.values()) else 1


def describe() -> Iterator[str]:
    """The lines of the report before the self-test."""
    info, reason = _extension.build_info(), _extension.unavailable_reason()
    yield f"dsmooth {_extension.__version__} in {_extension.PACKAGE}"
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    triton = next((found.version for found in metadata.distributions(name="triton")), "none")
    yield f"torch {torch.__version__}, triton {triton}"
    if reason is not None:
        yield f"extension: none: {reason}"
    else:
        built = f"{info['compiler']}, {info['flags']}" if info else "without a build record"
        yield f"extension: {built}; instruction sets: {', '.join(_extension.instruction_sets())}"
    cuda = info["cuda"] if info else {"images": [], "reason": "the extension was not built"}
    packaged = ", ".join(cuda["images"]) or f"none ({cuda['reason']})"
    found = nvrtc()
    compiler = f"NVRTC {found.version} ({found.path})" if found else "none (torch brings none)"
    yield f"CUDA sampler: packaged images: {packaged}; compiler: {compiler}"
    yield f"devices: cpu ({cpu_name()}), {torch.get_num_threads()} threads"
    if torch.cuda.device_count() == 0:
        yield f"devices: no CUDA device: {describe_cuda(0)}"
    for i in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(i)
        yield f"devices: cuda:{i} ({name}); its sampler: {describe_cuda(i)}"


def _philox_is_right() -> bool:
    words = [tuple(philox4x32(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist())]
    if _extension.unavailable_reason() is None:
        words.append(tuple(_extension.extension().philox4x32_10([0] * 4, [0] * 2)))
    return set(words) == {_PHILOX_ZERO}


def _native_is_right() -> bool:
    """Whether the native op and its reference, in float64, differ only by rounding."""
    x = torch.linspace(-1, 1, 72, dtype=torch.float64).view(1, 1, 8, 9).requires_grad_()
    params = torch.linspace(-2, 2, 30 * 72, dtype=torch.float64).view(1, 30, 8, 9).requires_grad_()
    results = []
    for impl in ("native", "reference"):
        log_prob = logistic_mixture_log_prob(x, params, "discretized", impl)
        results.append((log_prob, *torch.autograd.grad(log_prob.sum(), (x, params))))
    pairs = zip(*results, strict=True)
    return all(torch.allclose(a, b, 1e-10, 1e-10) for a, b in pairs)
