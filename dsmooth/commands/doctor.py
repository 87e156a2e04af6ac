"""`dsmooth doctor`: the installation, the build with its reasons, and a self-test."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib import metadata

import torch

from .. import _extension
from .._version import __version__
from ..cuda import describe_compiler, describe_cuda
from ..functional import logistic_mixture_log_prob
from ..likelihoods import Atoms, Likelihood
from ..machine import cpu_name
from ..philox import philox4x32
from ..pixels import value_of
from .options import Doctor

_PHILOX_ZERO = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # counter and key all zero


def doctor(options: Doctor | None = None) -> int:
    """Run `dsmooth doctor`; 1 if the self-test failed, not for a missing extension."""
    for line in describe():
        print(line)
    checks = {"Philox": _check_philox, "256 masses sum to 1": _check_masses}
    if _extension.is_available():
        checks["loss and gradient, native against reference"] = _check_native
    failed = 0
    start = time.perf_counter()
    for name, check in checks.items():  # a check returns None, or the fault in words
        problem = check()
        failed += problem is not None
        print(f"self-test: {name}: {problem or 'ok'}")
    verdict = f"{failed} failed" if failed else "passed"
    print(f"self-test {verdict} in {time.perf_counter() - start:.1f} s")
    return 1 if failed else 0


def describe() -> Iterator[str]:
    """The lines of the report before the self-test."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    info, reason = _extension.build_info(), _extension.unavailable_reason()
    yield f"dsmooth {__version__} in {_extension.PACKAGE}"
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"torch {torch.__version__}, triton {triton}"
    if reason is not None:
        yield f"extension: none: {reason}"
    elif info is None:
        yield "extension: loaded, without a build record"
    else:
        threads = "OpenMP" if _extension.extension().has_openmp else "std::thread"
        yield f"extension: {info['compiler']}, {info['flags']}, {threads}"
    cuda = info["cuda"] if info else {"images": [], "reason": "the extension was not built"}
    packaged = ", ".join(cuda["images"]) or f"none ({cuda['reason']})"
    yield f"CUDA sampler: packaged images: {packaged}; compiler: {describe_compiler()}"
    if reason is None:
        usable = _extension.instruction_sets()
        built = ", ".join(info["instruction_sets"]) if info else "unknown"
        yield f"instruction sets: built {built}; usable here {', '.join(usable)}; used {usable[-1]}"
    yield f"threads: {torch.get_num_threads()} (torch.set_num_threads or OMP_NUM_THREADS)"
    yield f"devices: cpu ({cpu_name()})"
    if torch.cuda.device_count() == 0:
        yield f"devices: no CUDA device: {describe_cuda(0)}"
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        name = torch.cuda.get_device_name(i)
        yield f"devices: cuda:{i} ({name}, {memory:.0f} GiB); its sampler: {describe_cuda(i)}"


def _check_philox() -> str | None:
    words = tuple(philox4x32(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist())
    if words != _PHILOX_ZERO:
        return f"Python gives {words}"
    if _extension.is_available():
        native = tuple(_extension.extension().philox4x32_10([0] * 4, [0] * 2))
        if native != _PHILOX_ZERO:
            return f"the extension gives {native}"
    return None


def _check_masses() -> str | None:
    bytes_ = value_of(torch.arange(256, dtype=torch.float64))
    params = torch.tensor([0.3, -0.2, -0.5, 0.4, -7.0, -1.0], dtype=torch.float64)
    log_prob = logistic_mixture_log_prob(
        bytes_.view(1, 1, 1, 256), params.view(1, 6, 1, 1).expand(1, 6, 1, 256), "discretized"
    )
    total = log_prob.exp().sum().item()
    return None if abs(total - 1) < 1e-12 else f"the sum is {total!r}"


def _check_native() -> str | None:
    """Compare the native op with its reference in float64: they may differ only by rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 9, generator=generator, dtype=torch.float64) * 2 - 1
    x[0], x[1, :, :4] = -1, 1  # at the two atoms
    params = torch.randn(2, 286, 8, 9, generator=generator, dtype=torch.float64)
    mixtures: tuple[tuple[Likelihood, Atoms, int, int], ...] = (
        ("continuous", (), 3, 100),
        ("gaussian", (), 3, 100),
        ("discretized", (0, 255), 3, 102),
        ("discretized", "all", 1, 286),
    )
    for likelihood, atoms, channels, n_params in mixtures:
        inputs = x[:, :channels].clone().requires_grad_(), params[:, :n_params].requires_grad_()
        results = []
        for impl in ("native", "reference"):
            log_prob = logistic_mixture_log_prob(
                *inputs, likelihood, impl, atoms=atoms, smoothing_scale=0.3
            )
            results.append((log_prob, *torch.autograd.grad(log_prob.sum(), inputs)))
        for got, want in zip(*results, strict=True):
            difference = ((got - want).abs() / (1 + want.abs())).max().item()
            if not difference < 1e-10:
                return f"{likelihood} {atoms} differs by {difference:.1e}"
    return None
