"""Compile Triton kernels for an H100 in another machine: python tools/triton_cache.py

Triton compiles the kernels that a step launches, with a driver that launches nothing, into the
folder build/triton; kernels that are there are kept. On the other machine it finds them in a folder
with the same relative path. The key of a kernel in this cache is a hash of Triton's files and its
version of Python; the version of ptxas; the architecture; the source and line numbers of the kernel
and of the functions that it calls; the types, alignments, constants and options of the arguments.
So both machines need the same versions of Python and Triton and the same kernels; torch and the
folders may differ. On the other machine `--check` compares the builds of Triton.
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
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = 90  # compute capability of an H100
CACHE = Path("build/triton")  # relative: Triton lists the files of a kernel by their paths
KEY = CACHE / "triton-key"  # the build of Triton that compiled the kernels


def key() -> str:
    """The hash of the build of Triton, which is part of the key of each kernel."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def check() -> None:
    """Exit with a message if this build of Triton will not find the kernels."""
    if not KEY.exists() or KEY.read_text() != key():
        sys.exit(f"the kernels in {CACHE} were compiled by another build of Triton")
    print(len(list(CACHE.glob("*/*.cubin"))), "kernels in", CACHE)


def pretend() -> None:
    """Make this process use the Triton kernels on CPU tensors, with a fake GPU driver."""
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
    fake_driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", ARCHITECTURE, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda src, metadata: lambda *args: None,
        utils=utils,
    )
    driver.set_active(fake_driver)
    launch.capability_of = lambda device: ARCHITECTURE
    for op in ("dispatch", "gated_resnet", "logistic_mixture"):
        module: Any = import_module(f"dsmooth.functional.{op}")
        module.triton_obstacle = lambda *args, **named: None
    mock.patch.object(Card, "ours", "triton").start()


def benchmarked(name: str, tiny: bool = False) -> None:
    """Run a case of benchmarks/on_gpu.py without its check."""
    import torch

    from benchmarks.on_gpu import CASES, Card

    CASES[name](Card(torch.device("cpu"), tiny)).run()


def tested() -> None:
    """Run the cases of the GPU tests in bfloat16."""
    import torch

    # A namespace package, which an installed package `tests` would hide.
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests
    from tests.functional.test_gpu_gated_resnet import SIZES as BLOCKS
    from tests.functional.test_gpu_logistic_mixture import SIZES as MIXED
    from tests.helpers.gated_cases import KERNELS, STRIDES, make_case
    from tests.helpers.mixture_cases import (
        MIXTURES,
        log_prob_of,
        random_case,
        value_and_gradients,
    )

    bf16 = torch.bfloat16
    for shift in KERNELS:
        for size, filters, skips in BLOCKS:
            case = make_case(shift, size, filters, skips, 0.5, bf16, gains=True)
            for prepare in STRIDES.values():
                case.run("triton", bf16, prepare)
    for mixture in MIXTURES:
        for channels in (1, 3):
            for size, n_mix in MIXED:
                x, params = random_case(channels, mixture, n_mix=n_mix, size=size)
                function = log_prob_of(mixture, "triton")
                for order in (torch.contiguous_format, torch.channels_last):
                    value_and_gradients(function, x.to(bf16), params.to(bf16, memory_format=order))


BENCHMARKED = (
    "step-cifar-ours",
    "step-mnist-ours",
    *("preset-mnist-noisy-uncaptured", "preset-mnist-denoiser-uncaptured"),
    "preset-cifar10-noisy-uncaptured",
    *("loss-cifar-continuous-ours", "loss-cifar-discretized-ours"),
    *("loss-mnist-continuous-ours", "loss-mnist-discretized-ours"),
)


def fill(cases: Mapping[str, Callable[[], None]]) -> int:
    """Compile the kernels that the cases launch; returns the number of new ones."""
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
