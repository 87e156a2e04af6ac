"""Run the tests and measurements that need a GPU, the most important first.

    python tools/gpu_day.py

A call takes at most --minutes and runs the steps that are not done. A step is a command with a log;
one that would take longer than the remaining time is skipped until the next call. After each step
the folder $OUT, or --state, holds day.json, day.md, measured.json, logs.tar.gz and, of training,
noisy.tar.gz and denoiser.tar.gz, each smaller than 16 MiB. To continue on another machine, copy
day.json and measured.json to build/gpu-day there.

If a smoke test of a family (block, loss, training, sampler) fails, that family is not timed.

The tool needs only Python. It installs the wheels in build/wheels, if any, and unpacks compiled
kernels from build/triton.tar.xz (tools/triton_cache.py); CONTRIBUTING.md says how to make both.
--rehearse runs the steps that need no GPU on the CPU, with the smallest sizes. The exit status is 1
if a step failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
WHEELS = BUILD / "wheels"
KERNELS = BUILD / "triton.tar.xz"
LIMIT = 500.0  # seconds of one step
MOST_BYTES = 15 * 2**20  # of a file in $OUT, which may take 8 files of 16 MiB
OF_A_RUN = ("config.json", "log.jsonl", "model.safetensors")  # weights of F40 take 13.5 MB
GRACE = 20  # seconds between SIGTERM and SIGKILL
STOPPED, KILLED = 124, -signal.SIGKILL  # exit statuses of `timeout`
PYTHON = sys.executable
FAILED = ("failed", "too long")
ENVIRONMENT = {
    "DSMOOTH_CUDA": "1",
    "PYTHONUNBUFFERED": "1",
    "TRITON_CACHE_DIR": "build/triton",
    "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
}
ON_GPU = (PYTHON, "benchmarks/on_gpu.py")
TINY = ("--device=cpu", "--tiny")  # of on_gpu.py
# In bash, with Python as $0. Versions, packages and clocks of the machine:
DESCRIBE = """
"$0" -VV; "$0" -m pip list; nvcc --version; nvidia-smi --format=csv \
--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit; true
"""
# Packages that the machine lacks:
PACKAGES = """
"$0" -m pip install -q --no-deps --no-index $(ls build/wheels/*.whl | grep -v /dsmooth-)
"""
# Kernels, which must be of this machine's build of Triton:
UNPACK = f'"$0" -m tarfile -e build/{KERNELS.name} && "$0" tools/triton_cache.py --check'
# The extension of the sources with the digest $1, if it is not installed: from a wheel, or built,
# which takes minutes.
INSTALL = """
pip=("$0" -m pip install -q --no-deps)
{ [ "$(cat build/built)" = "$1" ] && "$0" -P -c "from dsmooth import _C"; } ||
  "${pip[@]}" --force-reinstall --no-index --find-links=build/wheels dsmooth ||
  "${pip[@]}" --no-build-isolation -e . && echo "$1" > build/built
"""


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it should take.

    tiny: further arguments to rehearse it with; None if it needs a GPU. STATE in the command is the
    folder of logs, results and runs. A step is stopped after LIMIT seconds; training then saves and
    continues in the next call. always: run in each call, to prepare the machine.
    """

    name: str
    command: Sequence[str]
    seconds: float
    tiny: Sequence[str] | None = None
    always: bool = False


PREPARES = ("install", "build")  # if one of these fails, the call ends
# The tests of each family, and the expression (-k) that chooses its smoke tests, thirty in all:
# each kernel, dtype and conditioning against its reference; eight warps; streams and graphs.
FAMILIES = {
    "block": (
        ["tests/functional/test_gpu_gated_resnet.py"],
        "(size1-5 and none) or (size2-40 and bfloat16) or (size3-160 and bfloat16 and down)"
        " or tf32",
    ),
    "loss": (
        ["tests/functional/test_gpu_logistic_mixture.py"],
        "(triton-1 and last and bfloat16) or (triton-3 and contiguous and float32)",
    ),
    "training": (
        ["tests/training/test_train_step.py", "tests/functional/test_gpu_training_step.py"],
        "replayed or of_the_cpu or of_pytorch",
    ),
    "sampler": (
        ["tests/sampling/test_cached_sampler.py", "tests/sampling/test_cached_sampler_cuda.py"],
        "near_the_network or (same_bits and bfloat16) or a_graph_draws or outlive"
        " or current_stream or failed_call",
    ),
}
PROVING = [file for files, _ in FAMILIES.values() for file in files]
# The families that a step times, by the first word of its name after "ncu-".
TIMED = {
    "ceiling": (),
    "plain": (),
    "sampler": ("sampler",),
    "two": ("sampler",),  # two-step sampling
    "block": ("block",),
    "loss": ("loss",),
    **dict.fromkeys(("step", "preset", "trace", "train"), ("block", "loss", "training")),
}
# compute-sanitizer slows kernels a hundredfold: four cases.
SANITIZED = (
    "(size1-5 and none and bfloat16) or triton-3-continuous-torch.float32-contiguous"
    " or (near_the_network and none) or (same_bits and False-none-1-fields0 and bfloat16)"
)


def steps() -> list[Step]:
    """In the order in which they run."""
    install, unpack = ["bash", "-c", PACKAGES, PYTHON], ["bash", "-c", UNPACK, PYTHON]
    return [
        Step("preflight", ["bash", "-c", DESCRIBE, PYTHON], 10, (), always=True),
        *([Step("install", install, 10, always=True)] if WHEELS.is_dir() else []),
        *([Step("kernels", unpack, 10, (), always=True)] if KERNELS.is_file() else []),
        Step("build", ["bash", "-c", INSTALL, PYTHON, digest()], 180, always=True),
        Step("doctor", [PYTHON, "-m", "dsmooth", "doctor"], 20, ()),
        # The most important first: 2,112 images of F40, then the step of a preset.
        smoke("sampler"),
        measure("sampler-mnist-2112", 30, TINY),
        *(smoke(family) for family in ("block", "loss", "training")),
        measure("preset-mnist-noisy", 150, TINY),
        measure("ceiling", 30),
        measure("sampler-mnist", 60, TINY),
        measure("sampler-cifar", 90),
        measure("preset-mnist-denoiser", 60),
        measure("preset-cifar10", 150),
        # The first step of a network compiles those of its kernels that were not carried.
        measure("step-mnist-ours", 150, TINY),
        measure("step-mnist-eager", 45),
        measure("step-cifar-ours", 250),
        measure("step-cifar-eager", 60),
        measure("loss", 90, TINY),
        measure("two-step", 60),
        measure("plain", 60),
        # A sweep launches one kernel for every 4 rows; a block launches each Triton kernel.
        ncu("sampler", "sampler-mnist-1056", "sample", "--launch-skip=3", "--launch-count=1"),
        ncu("block", "block-cifar", "_kernel"),
        trace("mnist", TINY),
        trace("cifar"),
        measure("step-cifar-compile", 420),
        measure("step-mnist-compile", 300),
        check("tests-gated-resnet", 300, *PROVING[:1]),
        check("tests-mixture", 200, *PROVING[1:2]),
        check("tests-others", 300, *(f"--ignore={file}" for file in PROVING[:2])),
        *(sanitize(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
        *(train(role) for role in ("noisy", "denoiser")),
    ]


def digest() -> str:
    """The hash of what the extension is built from."""
    files = [ROOT / "setup.py", *ROOT.glob("dsmooth/functional/*.def"), *ROOT.glob("csrc/**/*")]
    contents = [path.read_bytes() for path in sorted(files) if path.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def proofs_of(name: str) -> list[str]:
    """The steps that must not have failed for this one to be timed."""
    word = name.removeprefix("ncu-").partition("-")[0]
    return ["doctor", *(f"smoke-{family}" for family in TIMED[word])] if word in TIMED else []


def measure(case: str, seconds: float, tiny: Sequence[str] | None = None) -> Step:
    """Cases of benchmarks/on_gpu.py with this beginning; each is saved once it is measured."""
    return Step(case, [*ON_GPU, case, "--out=STATE/measured.json"], seconds, tiny)


def trace(network: str, tiny: Sequence[str] | None = None) -> Step:
    """A trace of one warm training step by torch.profiler."""
    file = f"STATE/logs/trace-{network}.json.gz"
    command = [*ON_GPU, f"step-{network}-ours-uncaptured", f"--trace={file}"]
    return Step(f"trace-{network}", command, 60, tiny)


def ncu(family: str, case: str, kernel: str, *launches: str) -> Step:
    """Nsight Compute on launches of the kernels with these names, in one warm call."""
    program = ["ncu", "--profile-from-start=off", "--clock-control=none", "--set=full"]
    program += [f"--kernel-name=regex:{kernel}$", *launches]
    return Step(f"ncu-{family}", [*program, *ON_GPU, case, "--once"], 120)


def gpu_tests(*arguments: str) -> list[str]:
    """The GPU tests of the installed package (PYTHONSAFEPATH); warnings are not failures here."""
    pytest = ["env", "PYTHONSAFEPATH=1", PYTHON, "-m", "pytest"]
    return [*pytest, "-v", "-m", "gpu", "-W", "default", *arguments]


def smoke(family: str) -> Step:
    """The smoke tests of a family."""
    files, chosen = FAMILIES[family]
    return check(f"smoke-{family}", 60, "-x", "-k", chosen, *files, tiny=("-n0",))


def check(name: str, seconds: float, *arguments: str, tiny: Sequence[str] | None = None) -> Step:
    """Tests by eight workers, which compile kernels at the same time."""
    return Step(
        name, gpu_tests("-n8", f"--junitxml=STATE/logs/{name}.xml", *arguments), seconds, tiny
    )


def sanitize(tool: str) -> Step:
    """A tool of compute-sanitizer, without torch's memory cache, which would hide the bounds."""
    program = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", f"--tool={tool}"]
    command = [*program, "--error-exitcode=9", *gpu_tests("-n0", "-k", SANITIZED, *PROVING)]
    return Step(tool, command, 120)


def train(role: str) -> Step:
    """Training with the settings of the packaged pair `mnist-classes`, in one schedule."""
    config = ROOT / "dsmooth" / "pretrained" / "mnist-classes" / role / "config.json"
    command = [PYTHON, "-m", "dsmooth", "train", role, f"--out=STATE/runs/{role}", "--resume"]
    tiny = ["--n-filters=4", "--n-resnet=1", "--images=16", "--evaluations=1"]
    tiny += ["--evaluation-images=4"]
    return Step(f"train-{role}", [*command, f"--config={config}"], 120, tiny)


def run(command: Sequence[str], environment: Any, log: Path, limit: float) -> int:
    """The exit status; after `limit` seconds that of `timeout`, which stops all its processes."""
    limited = ["timeout", f"--kill-after={GRACE}", f"{limit:.0f}", *command]
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        return subprocess.run(
            limited, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def pack(archive: Path, folder: Path, files: Sequence[Path]) -> None:
    """Pack files, small ones first, and leave out those that might exceed MOST_BYTES."""
    content = io.BytesIO()
    found = sorted((file.stat().st_size, file) for file in files if file.is_file())
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for size, file in found:
            if content.tell() + size < MOST_BYTES:
                tar.add(file, file.relative_to(folder))
            else:
                print(f"{archive.name}: {file.name} of {size:,} bytes is left out")
    write(archive, content.getvalue())


class Day:
    """The outcomes of the steps so far, in a folder of state, and their copy in $OUT."""

    def __init__(self, state: Path) -> None:
        self.state, self.out = state, Path(os.environ.get("OUT") or state).resolve()
        (state / "logs").mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        self.steps: dict[str, Any] = self.read("day.json", "steps")

    def read(self, file: str, key: str) -> dict[str, Any]:
        path = self.state / file
        return dict(json.loads(path.read_text())[key]) if path.exists() else {}

    def failed(self, *names: str) -> list[str]:
        """Those of these steps that failed."""
        return [name for name in names if self.steps.get(name, {}).get("outcome") in FAILED]

    def note(self, name: str, outcome: str, seconds: float = 0, text: str = "") -> None:
        """Record the outcome of a step, and update the output folder."""
        self.steps[name] = {"outcome": outcome, "seconds": round(seconds, 1), "text": text}
        write(self.state / "day.json", json.dumps({"steps": self.steps}, indent=1).encode())
        write(self.out / "day.md", self.table().encode())
        for file in ("day.json", "measured.json"):
            if self.out != self.state and (self.state / file).exists():
                write(self.out / file, (self.state / file).read_bytes())
        pack(self.out / "logs.tar.gz", self.state, sorted(self.state.glob("logs/*")))
        for run in sorted(self.state.glob("runs/*")):
            pack(self.out / f"{run.name}.tar.gz", self.state, [run / file for file in OF_A_RUN])
        print(f"{name}: {outcome}, {seconds:.0f} s. {text}", flush=True)

    def table(self) -> str:
        """The steps and the results of benchmarks/on_gpu.py, in Markdown."""
        rows = [["step", "outcome", "seconds", "last line"], ["---"] * 4]
        for name, step in self.steps.items():
            text = step["text"].replace("|", "/")
            rows.append([name, step["outcome"], f"{step['seconds']:.0f}", text])
        rows += [[], ["case", "time", "img/s", "TFLOP/s", "TB/s"], ["---"] * 5]
        for name, found in self.read("measured.json", "results").items():
            rates = [str(found.get(f"{unit}_per_s", "")) for unit in ("img", "tflop", "tb")]
            rows.append([name, f"{1e3 * found['seconds'][0]:.4g} ms", *rates])
        return "".join(f"| {' | '.join(row)} |\n" if row else "\n" for row in rows)


def attempt(step: Step, day: Day, left: float, rehearse: bool) -> None:
    """Run a step, or skip it, and record the outcome."""
    wrong = day.failed(*proofs_of(step.name))
    reason = ""
    if rehearse and step.tiny is None:
        reason = "needs a GPU"
    elif wrong:
        reason = f"{' and '.join(wrong)} failed"
    elif step.seconds > left:
        reason = f"takes {step.seconds:.0f} s, {max(left, 0):.0f} s are left"
    if reason:
        day.note(step.name, "skipped", text=reason)
        return
    command = [*step.command, *(step.tiny or () if rehearse else ())]
    command = [word.replace("=STATE/", f"={day.state}/") for word in command]
    log, limit = day.state / "logs" / f"{step.name}.log", min(LIMIT, left)
    started = time.monotonic()
    status = run(command, os.environ | ENVIRONMENT, log, limit)
    took = time.monotonic() - started
    stopped = "unfinished" if "--resume" in step.command else "too long"
    outcome = {0: "done", STOPPED: stopped, KILLED: "too long"}.get(status, "failed")
    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    day.note(step.name, outcome, took, last[:200])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9, help="time limit of this call")
    parser.add_argument("--state", type=Path, default=BUILD / "gpu-day", help="results; $OUT too")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run only these steps")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    options = parser.parse_args(arguments)
    planned = {step.name: step for step in steps()}
    for name in options.only or ():
        if name not in planned:
            parser.error(f"{name!r} is not a step: the steps are {', '.join(planned)}")
    day, end = Day(options.state.resolve()), time.monotonic() + 60 * options.minutes
    for name, step in planned.items():
        done = day.steps.get(name, {}).get("outcome") == "done" and not step.always
        if name in (options.only or planned) and not done:
            left = end - time.monotonic()
            attempt(step, day, left, options.rehearse)
            if name in PREPARES and day.failed(name):
                break
    print(day.table())
    return int(any(step["outcome"] in FAILED for step in day.steps.values()))


if __name__ == "__main__":
    sys.exit(main())
