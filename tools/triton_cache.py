"""Compile Triton's kernels for an H100 that is elsewhere: python tools/triton_cache.py

Triton itself compiles what a step would launch, for a driver that launches nothing, into the folder
build/triton, where it goes on from what is there. It finds them again on the other machine, in a
folder of that relative path. The name of a kernel in its cache is a hash of Triton's files with
libtriton.so, which is built for one version of Python; ptxas's version; the architecture; the
source of the kernel and of all that it calls, with the lines where they begin; the types and
alignments of the arguments, constants and options. So both machines need the same versions of
Python and Triton and the same kernels; torch and the folders may differ. There `--check` says
whether it is the same build of Triton, which else would compile all of them again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = 90  # compute capability of an H100
CACHE = Path("build/triton")  # relative: Triton lists the files of a kernel by their paths
KEY = CACHE / "triton-key"  # says which build of Triton compiled them


def key() -> str:
    """Hash that the names of all kernels share."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def check() -> None:
    """Exit with a message if this Triton will not find the kernels that are there."""
    if not KEY.exists() or KEY.read_text() != key():
        sys.exit(f"the kernels in {CACHE} were compiled by another build of Triton")
    print(len(list(CACHE.glob("*/*.cubin"))), "kernels in", CACHE)


def pretend() -> None:
    """Have this process compute with the Triton kernels on the CPU, for a stand-in of a GPU."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from benchmarks.ceilings import Card
    from dsmooth.kernels import launch

    torch.set_num_threads(1)
    utils = types.SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
        load_binary=lambda *args: (1, 1, 0, 0, 1024),
    )
    stand_in = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", ARCHITECTURE, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda src, metadata: lambda *args: None,
        utils=utils,
    )
    driver.set_active(stand_in)
    launch.capability_of = lambda device: ARCHITECTURE
    for op in ("dispatch", "gated_resnet", "logistic_mixture"):
        module: Any = import_module(f"dsmooth.functional.{op}")
        module.triton_obstacle = lambda *args, **named: None
    Card.ours = "triton"


def benchmarked(name: str, tiny: bool = False) -> None:
    """A case of benchmarks/on_gpu.py, unchecked."""
    import torch

    from benchmarks.on_gpu import CASES, Card

    CASES[name](Card(torch.device("cpu"), tiny)).run()


def tested() -> None:
    """The cases of the GPU tests in bfloat16."""
    import torch

    # A namespace, which a package of this name among the installed ones would hide.
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests
    from dsmooth.functional import logistic_mixture_log_prob
    from tests.functional.test_gpu_gated_resnet import SIZES as BLOCKS
    from tests.functional.test_gpu_logistic_mixture import SIZES as MIXED
    from tests.helpers.gated_cases import KERNELS, STRIDES, make_case
    from tests.helpers.mixture_cases import MIXTURES, float_case, value_and_gradients

    bf16 = torch.bfloat16
    for shift in KERNELS:
        for size, filters, skips in BLOCKS:
            case = make_case(shift, size, filters, skips, 0.5, bf16, gains=True)
            for prepare in STRIDES.values():
                case.run("triton", bf16, prepare)
    for mixture in MIXTURES:
        for channels in (1, 3):
            for size, n_mix in MIXED:
                x, params, options = float_case(channels, mixture, n_mix=n_mix, size=size)
                function = partial(logistic_mixture_log_prob, impl="triton", **options)
                for order in (torch.contiguous_format, torch.channels_last):
                    value_and_gradients(function, x.to(bf16), params.to(bf16, memory_format=order))


BENCHMARKED = (
    *("step-cifar-kept", "step-cifar-again", "step-mnist-kept", "step-mnist-again"),
    *("preset-mnist-noisy-uncaptured", "preset-mnist-denoiser-uncaptured"),
    "preset-cifar10-noisy-uncaptured",
    *("loss-cifar-continuous-ours", "loss-cifar-discretized-ours"),
    *("loss-mnist-continuous-ours", "loss-mnist-discretized-ours"),
)


def fill(cases: Mapping[str, Callable[[], None]]) -> int:
    """Compile what the cases launch; returns how many kernels that made."""
    from triton import knobs

    knobs.cache.dir = str(CACHE)
    pretend()
    first = before = len(list(CACHE.glob("*/*.cubin")))
    for name, case in cases.items():
        case()
        after = len(list(CACHE.glob("*/*.cubin")))
        print(f"{name}: {after - before} new kernels", flush=True)
        before = after
    KEY.write_text(key())
    return before - first


if __name__ == "__main__":
    os.chdir(ROOT)
    if sys.argv[1:] == ["--check"]:
        check()
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        sys.path.append(str(ROOT))
        fill({**{name: partial(benchmarked, name) for name in BENCHMARKED}, "tests": tested})
