"""Compile Triton's kernels for a GPU that is elsewhere: python tools/triton_cache.py fill

Triton itself compiles what a step would launch, for a driver that launches nothing, and finds it
again on the other machine. The name of a kernel in its cache is a hash of Triton's files with
libtriton.so, which is built for one version of Python; ptxas's version; the architecture; the
source of the kernel and of all that it calls, with the lines where they begin; the types and
alignments of the arguments, constants and options. So both machines need the same versions of
Python and Triton and the same kernels; torch and the folders may differ.

    fill [CASE ...]   into TRITON_CACHE_DIR or build/triton, where it goes on from what is there
    pack [FILE]       the kernels and launchers of that folder, into build/triton.tar.xz
    unpack [FILE]     into that folder on the other machine; fails if its Triton is another build
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TRITON_CACHE_DIR") or ROOT / "build" / "triton")
PACKED = ROOT / "build" / "triton.tar.xz"
CARRIED = (".cubin", ".json", ".so")  # compiled kernels, their descriptions, and launchers
KEY = "triton-key"  # the file that says which build of Triton compiled them
GROUP = "__grp__"  # before the name of a file that lists those of a kernel, by their whole paths


def files(cache: Path) -> set[str]:
    """Files that Triton would look for, relative to the folder."""
    found = (path for path in cache.glob("*/*") if path.suffix in CARRIED)
    return {str(path.relative_to(cache)) for path in found if not path.name.startswith(GROUP)}


def key() -> str:
    """Hash that the names of all kernels share."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def pack(cache: Path, file: Path) -> None:
    (cache / KEY).write_text(key())
    with tarfile.open(file, "w:xz") as tar:
        tar.add(cache / KEY, KEY)
        # By kind and kernel: neighbours resemble each other.
        for name in sorted(files(cache), key=lambda name: name.split("/")[::-1]):
            tar.add(cache / name, name)


def unpack(file: Path, cache: Path) -> None:
    """Extract, and list the files of each kernel where they are now.

    Raises ValueError if this Triton will not find them.
    """
    with tarfile.open(file) as tar:
        tar.extractall(cache, filter="data")
    for name in files(cache):
        path = cache / name
        if path.suffix == ".json":
            group = {one: str(path.with_name(one)) for one in (path.name, f"{path.stem}.cubin")}
            listed = json.dumps({"child_paths": group})
            path.with_name(GROUP + path.name).write_text(listed)
    if (cache / KEY).read_text() != key():
        raise ValueError(f"the kernels in {file} were compiled by another build of Triton")
    print(sum(name.endswith(".cubin") for name in files(cache)), "kernels in", cache)


def stand_in_libcuda(sources: Iterable[Path], folder: Path) -> None:
    """Build and load a libcuda whose functions, those that the sources call, return 0."""
    called = {
        name for source in sources for name in re.findall(r"\bcu[A-Z]\w+(?=\()", source.read_text())
    }
    code = "\n".join(f"int {name}(void) {{ return 0; }}" for name in sorted(called))
    library = folder / "libcuda.so.1"
    command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    command += ["-xc", "-", "-o", str(library)]
    subprocess.run(command, input=code, text=True, check=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def stand_in(architecture: int, folder: Path) -> Any:
    """A driver of Triton's for a GPU that is not there: all is built as for one, and launches do
    nothing. folder: for its library, while the process lives."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver

    here = Path(driver.__file__)
    stand_in_libcuda((here, here.with_name("driver.c")), folder)
    knobs.nvidia.libcuda_path = str(folder)

    class Launcher(driver.CudaLauncher):
        def __call__(self, *args: Any) -> None:
            pass

    class StandIn(driver.CudaDriver):
        def __init__(self) -> None:
            self.launcher_cls = Launcher
            self.utils = driver.CudaUtils()
            self.utils.get_device_properties = lambda device: {"max_shared_mem": 227 * 1024}
            self.utils.load_binary = lambda *args: (1, 1, 0, 0, 1024)

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    return StandIn()


def pretend(architecture: int, folder: Path) -> None:
    """Have this process compute with the Triton kernels on the CPU, for a stand-in of a GPU."""
    import torch
    from triton.runtime import driver

    from dsmooth.functional import dispatch
    from dsmooth.kernels import launch

    torch.set_num_threads(1)
    driver.set_active(stand_in(architecture, folder))
    launch.capability_of = lambda device: architecture
    dispatch._triton_obstacle = lambda *args: None


def step(network: Any, batch: int) -> None:
    """The steps that benchmarks/on_gpu.py times, with A and G kept and not.

    Not those between torch's convolutions, which the CPU would take minutes to compute.
    """
    import torch

    from dsmooth.functional import use_impl
    from dsmooth.train.device import set_keep_gates

    for keep in (True, False):
        model = network.build().to(memory_format=torch.channels_last)
        set_keep_gates(model, keep)
        x = torch.rand(network.shape(batch))
        with use_impl("triton"), torch.autocast("cpu", torch.bfloat16):
            loss = -model.log_prob(x).sum() / x.numel()
        loss.backward()


def benchmarked(name: str) -> None:
    from benchmarks.on_gpu import NETWORKS, TRAINED

    step(NETWORKS[name], TRAINED[name])


def losses() -> None:
    """The values and gradients that benchmarks/on_gpu.py times."""
    import torch

    from benchmarks.on_gpu import LOSSES
    from dsmooth.functional import logistic_mixture_log_prob

    for shape in LOSSES.values():
        params = torch.randn(shape[0], 30 if shape[1] == 1 else 100, *shape[2:])
        params = params.to(memory_format=torch.channels_last).requires_grad_()
        logistic_mixture_log_prob(torch.rand(shape), params, impl="triton").sum().backward()


def trained(role: str) -> None:
    """A step of training as the released pair was."""
    import torch

    from dsmooth.data import ImageDataset
    from dsmooth.functional import use_impl
    from dsmooth.runs import RunFolder
    from dsmooth.train.step import TrainState

    folder = ROOT / "dsmooth" / "pretrained" / "mnist" / role
    config = replace(RunFolder(folder).read_config()[0], keep_gates="on")
    images = torch.zeros(config.batch_size, 1, 28, 28, dtype=torch.uint8)
    with use_impl("triton"):
        TrainState(config, ImageDataset(images, None, "", "train", ""), torch.device("cpu")).step()


def tested() -> None:
    """The cases of the GPU tests in bfloat16."""
    import torch

    # A namespace, which a package of this name among the installed ones would hide.
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests
    from dsmooth.functional import logistic_mixture_log_prob
    from tests.helpers.gated_cases import KERNELS, STRIDES, make_case
    from tests.helpers.mixture_cases import MIXTURES, float_case, value_and_gradients
    from tests.test_gpu_gated_resnet import SIZES as BLOCKS
    from tests.test_gpu_logistic_mixture import SIZES as MIXED

    bf16 = torch.bfloat16
    for shift in KERNELS:
        for size, filters, skips in BLOCKS:
            case = make_case(shift, size, filters, skips, 0.5, bf16, gains=True)
            for prepare in STRIDES.values():
                for impl in ("triton", "cudnn"):
                    case.run(impl, bf16, prepare)
    for mixture in MIXTURES:
        for channels in (1, 3):
            for size, n_mix in MIXED:
                x, params, options = float_case(channels, mixture, n_mix=n_mix, size=size)
                function = partial(logistic_mixture_log_prob, impl="triton", **options)
                for order in (torch.contiguous_format, torch.channels_last):
                    value_and_gradients(function, x.to(bf16), params.to(bf16, memory_format=order))


CASES: dict[str, Callable[[], None]] = {
    "step-cifar": partial(benchmarked, "cifar"),
    "step-mnist": partial(benchmarked, "mnist"),
    "loss": losses,
    "train-noisy": partial(trained, "noisy"),
    "train-denoiser": partial(trained, "denoiser"),
    "tests": tested,
}


def fill(cases: Mapping[str, Callable[[], None]], architecture: int = 90) -> int:
    """Compile what the cases launch; returns how many files that made."""
    from triton import knobs

    CACHE.mkdir(parents=True, exist_ok=True)
    knobs.cache.dir = str(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        pretend(architecture, Path(folder))
        first = before = len(files(CACHE))
        for name, case in cases.items():
            case()
            after = len(files(CACHE))
            print(f"{name}: {after - before} new files", flush=True)
            before = after
    return before - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("fill")
    filling.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; or all")
    filling.add_argument("--architecture", type=int, default=90, help="compute capability, as 90")
    for command in ("pack", "unpack"):
        commands.add_parser(command).add_argument("file", type=Path, nargs="?", default=PACKED)
    options = parser.parse_args()
    if options.command == "pack":
        pack(CACHE, options.file)
    elif options.command == "unpack":
        unpack(options.file, CACHE)
    else:
        sys.path.append(str(ROOT))
        fill({name: CASES[name] for name in options.cases or CASES}, options.architecture)


if __name__ == "__main__":
    main()
