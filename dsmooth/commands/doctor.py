"""`dsmooth doctor`: the installation, the build with its reasons, and a self-test."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from .. import _extension
from .._version import __version__
from ..machine import cpu_name
from .options import Doctor

_PHILOX_ZERO = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # counter and key all zero


def doctor(options: Doctor | None = None) -> int:
    """Carry out `dsmooth doctor`; 1 if the self-test failed, not for a missing extension."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in describe():
        console.print(line, markup=False)
    checks: dict[str, Callable[[], str | None]] = {
        "Philox": _check_philox,
        "256 masses sum to 1": _check_masses,
    }
    if _extension.is_available():
        checks["loss and gradient, native against reference"] = _check_native
    failed = 0
    start = time.perf_counter()
    for name, check in checks.items():  # a check returns None, or the fault in words
        problem = check()
        failed += problem is not None
        console.print(f"self-test: {name}: {problem or 'ok'}", markup=False)
    seconds = time.perf_counter() - start
    verdict = f"{failed} failed" if failed else "passed"
    console.print(f"self-test {verdict} in {seconds:.1f} s", style="red" if failed else "green")
    return 1 if failed else 0


def describe() -> Iterator[str]:
    """The lines of the report before the self-test."""
    import torch

    yield f"dsmooth {__version__} in {_extension.PACKAGE}"
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"torch {torch.__version__}, triton {_version_of('triton')}"
    yield from _describe_build()
    yield f"threads: {torch.get_num_threads()} (torch.set_num_threads or OMP_NUM_THREADS)"
    yield f"devices: cpu ({cpu_name()})"
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        yield f"devices: cuda:{i} ({torch.cuda.get_device_name(i)}, {memory:.0f} GiB)"


def cuda_build_line(info: dict[str, Any] | None) -> str:
    """One line on the CUDA build, or the reason why there is none."""
    if info is None:
        return "CUDA build: none (the extension was not built)"
    cuda = info["cuda"]
    if not cuda["built"]:
        return f"CUDA build: none ({cuda['reason']})"
    codes = [arch for arch in cuda["archs"] if arch != "PTX"]
    return f"CUDA build: {' '.join(codes)}{' + PTX' if 'PTX' in cuda['archs'] else ''}"


def _describe_build() -> Iterator[str]:
    info = _extension.build_info()
    reason = _extension.unavailable_reason()
    if reason is not None:
        yield f"extension: none: {reason}"
    elif info is None:
        yield "extension: loaded, without a build record"
    else:
        threads = "OpenMP" if _extension.extension().has_openmp else "std::thread"
        yield f"extension: {info['compiler']}, {info['flags']}, {threads}"
    yield cuda_build_line(info)
    if reason is None:
        usable = _extension.instruction_sets()
        built = ", ".join(info["instruction_sets"]) if info else "unknown"
        yield f"instruction sets: built {built}; usable here {', '.join(usable)}; used {usable[-1]}"


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _check_philox() -> str | None:
    import torch

    from ..philox import philox4x32

    words = tuple(philox4x32(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist())
    if words != _PHILOX_ZERO:
        return f"Python gives {words}"
    if _extension.is_available():
        native = tuple(_extension.extension().philox4x32_10([0] * 4, [0] * 2))
        if native != _PHILOX_ZERO:
            return f"the extension gives {native}"
    return None


def _check_masses() -> str | None:
    import torch

    from ..functional import logistic_mixture_log_prob

    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    params = torch.tensor([0.3, -0.2, -0.5, 0.4, -7.0, -1.0], dtype=torch.float64)
    log_prob = logistic_mixture_log_prob(
        levels.view(1, 1, 1, 256), params.view(1, 6, 1, 1).expand(1, 6, 1, 256), "discretized"
    )
    total = log_prob.exp().sum().item()
    return None if abs(total - 1) < 1e-12 else f"the sum is {total!r}"


def _check_native() -> str | None:
    """float64, where the two may differ by rounding alone."""
    import torch

    from ..functional import logistic_mixture_log_prob

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 9, generator=generator, dtype=torch.float64) * 2 - 1
    x[0], x[1, :, :4] = -1, 1  # at the two atoms
    params = torch.randn(2, 102, 8, 9, generator=generator, dtype=torch.float64)

    mixtures: dict[str, dict[str, Any]] = {
        "continuous": {"likelihood": "continuous"},
        "discretized": {"likelihood": "discretized"},
        "gaussian": {"likelihood": "gaussian", "smoothing_scale": 0.3},
        "discretized with atoms": {"likelihood": "discretized", "atoms": (0, 255)},
    }
    for name, mixture in mixtures.items():
        n_params = 100 + len(mixture.get("atoms", ()))
        results = []
        for impl in ("native", "reference"):
            inputs = x.clone().requires_grad_(), params[:, :n_params].clone().requires_grad_()
            log_prob = logistic_mixture_log_prob(*inputs, impl=impl, **mixture)
            results.append((log_prob, *torch.autograd.grad(log_prob.sum(), inputs)))
        for got, want in zip(*results, strict=True):
            difference = ((got - want).abs() / (1 + want.abs())).max().item()
            if not difference < 1e-10:
                return f"{name} differs by {difference:.1e}"
    return None
