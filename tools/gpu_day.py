"""Everything that waits for a GPU, what settles most first: python tools/gpu_day.py

A call takes at most --minutes. Each step is a command whose output goes to a log; one that should
take longer than is left is skipped, for the next call, which does again what failed and not what is
done. After each step the folder --out holds day.json, day.md, measured.json and logs.tar.gz. To go
on with another machine, put day.json and measured.json into build/gpu-day there.

The tool itself needs Python alone. Where there is a network, `--wheels` gathers what a GPU's
machine may lack into build/wheels, and tools/triton_cache.py compiles kernels ahead, some minutes
of the first steps, into build/triton.tar.xz; take both along. --rehearse does on the CPU, with the
smallest sizes, what needs no GPU. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
WHEELS = BUILD / "wheels"
KERNELS = BUILD / "triton.tar.xz"
LIMIT = 500.0  # seconds of one step
GRACE = 20.0  # seconds from the word to stop to the end
STOPPED = 128 + signal.SIGTERM  # the exit status of training that saved and stopped
PYTHON = sys.executable
FAILED = ("failed", "too long")
ENVIRONMENT = {
    "DSMOOTH_CUDA": "1",
    "PYTHONUNBUFFERED": "1",
    "TRITON_CACHE_DIR": str(BUILD / "triton"),
    "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
}

# Modules that dsmooth and its tests import, with the wheel that brings each: 1.6 MB together.
CARRIED = {
    "msgspec": "msgspec>=0.19",
    "tyro": "tyro>=0.9",
    "docstring_parser": "docstring_parser>=0.16",
    "typeguard": "typeguard>=4.0",
    "safetensors": "safetensors>=0.4",
    "pytest": "pytest>=9.0.3",
    "pluggy": "pluggy>=1.6",
    "iniconfig": "iniconfig>=2",
    "xdist": "pytest-xdist>=3.6",
    "execnet": "execnet>=2.1",
    "sortedcontainers": "sortedcontainers>=2.1",
}
# Modules that the machine must have; no wheel of them is gathered.
EXPECTED = (
    *("torch", "torchvision", "triton", "numpy", "rich", "matplotlib", "PIL", "hypothesis"),
    *("scipy", "setuptools", "pybind11", "cmake", "ninja"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Step:
    """A command, how many seconds it should take, and its rehearsal (None: it has none).

    A step is told to stop after `limit` seconds; training saves then, and goes on later. always: it
    prepares the machine, in each call. timing: it is left out after a wrong number.
    """

    name: str
    command: Sequence[str]
    seconds: float
    rehearsal: Sequence[str] | None = None
    limit: float = LIMIT
    always: bool = False
    timing: bool = False
    environment: dict[str, str] = field(default_factory=dict)


PREPARES = ("install", "build")  # if one of these fails, the call ends
PROVES = ("doctor", "smoke-tests")  # if one of these fails, nothing is timed
PROVING = [
    f"tests/test_{name}.py"
    for name in (
        *("gpu_gated_resnet", "gpu_logistic_mixture", "train_step"),
        *("cached_sampler", "cached_sampler_cuda"),
    )
]
# Thirty: each kind of kernel, dtype and conditioning against its reference; streams and graphs.
SMOKE = (
    "(size1-5 and none) or (size2-40 and bfloat16) or tf32 or (triton-1 and last and bfloat16)"
    " or (triton-3 and contiguous and float32) or near_the_network or (same_bits and bfloat16)"
    " or a_graph_draws or outlive or current_stream or failed_call or replayed"
)
# compute-sanitizer slows kernels a hundredfold: four cases.
SANITIZED = (
    "(size1-5 and none and bfloat16) or triton-3-continuous-torch.float32-contiguous"
    " or (near_the_network and none) or (same_bits and mixture0 and bfloat16)"
)
TUNED = {
    "cifar": ["gated_resnet", "--filters=160", "--size=32", "--batch=64"],
    "mnist": ["gated_resnet", "--filters=40", "--size=28", "--batch=80"],
    "loss": ["logistic_mixture"],
}


def steps(state: Path) -> list[Step]:
    """In the order in which they run. state: the folder of logs, results and runs."""
    preflight = [PYTHON, str(Path(__file__).resolve()), "--preflight"]
    install = [PYTHON, "-m", "pip", "install", "-q", "--no-deps"]
    carried = [*install, "--no-index", f"--find-links={WHEELS}", *CARRIED.values()]
    unpack = [PYTHON, "tools/triton_cache.py", "unpack", str(KERNELS)]
    doctor = [PYTHON, "-m", "dsmooth", "doctor"]
    return [
        Step("preflight", preflight, 10, preflight, always=True),
        *([Step("install", carried, 10, always=True)] if WHEELS.is_dir() else []),
        *([Step("kernels", unpack, 10, unpack, always=True)] if KERNELS.is_file() else []),
        Step("build", [*install, "--no-build-isolation", "-e", "."], 180, always=True),
        measure(state, "ceiling", 30),
        Step("doctor", doctor, 20, doctor),
        check(state, "smoke-tests", 120, "-x", "-k", SMOKE, *PROVING, rehearsed=True),
        measure(state, "sampler-mnist", 60, rehearsed=True),
        measure(state, "sampler-cifar", 90),
        # The first step of a network compiles those of its kernels that were not carried.
        measure(state, "step-mnist-kept", 150, rehearsed=True),
        *(measure(state, f"step-mnist-{mode}", 45) for mode in ("again", "cudnn", "eager")),
        measure(state, "step-cifar-kept", 250),
        *(measure(state, f"step-cifar-{mode}", 60) for mode in ("again", "cudnn", "eager")),
        measure(state, "loss", 60, rehearsed=True),
        measure(state, "two-step", 60),
        measure(state, "plain", 60),
        # A sweep launches one kernel for every 4 rows; a block launches each Triton kernel.
        ncu("ncu-sampler", "sampler-mnist-1056", "sample", "--launch-skip=3", "--launch-count=1"),
        ncu("ncu-block", "block", "_kernel"),
        trace(state, "trace-mnist", "step-mnist-kept-uncaptured", rehearsed=True),
        trace(state, "trace-cifar", "step-cifar-kept-uncaptured"),
        measure(state, "step-cifar-compile", 420),
        measure(state, "step-mnist-compile", 300),
        check(state, "tests-gated-resnet", 300, *PROVING[:1]),
        check(state, "tests-mixture", 200, *PROVING[1:2]),
        check(state, "tests-others", 300, *(f"--ignore={file}" for file in PROVING[:2])),
        *(sanitize(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
        *(
            Step(f"tune-{name}", [PYTHON, "benchmarks/tune.py", *arguments], 400, timing=True)
            for name, arguments in TUNED.items()
        ),
        *(train(state, role) for role in ("noisy", "denoiser")),
    ]


def measure(
    state: Path, case: str, seconds: float, name: str = "", *arguments: str, rehearsed: bool = False
) -> Step:
    """Cases of benchmarks/on_gpu.py that begin so; each is written as soon as it is measured."""
    written = arguments or (f"--out={state / 'measured.json'}",)
    command = [PYTHON, "benchmarks/on_gpu.py", case, *written]
    tiny = [*command, "--device=cpu", "--tiny"] if rehearsed else None
    return Step(name or case, command, seconds, tiny, timing=True)


def trace(state: Path, name: str, case: str, rehearsed: bool = False) -> Step:
    """A trace of one warm call by torch.profiler."""
    file = state / "logs" / f"{name}.json.gz"
    return measure(state, case, 60, name, f"--trace={file}", rehearsed=rehearsed)


def ncu(name: str, case: str, kernel: str, *launches: str) -> Step:
    """Nsight Compute on launches of kernels named so, in one warm call."""
    program = ["ncu", "--profile-from-start=off", "--clock-control=none", "--set=full"]
    program += [f"--kernel-name=regex:{kernel}$", *launches]
    command = [*program, PYTHON, "benchmarks/on_gpu.py", case, "--once"]
    return Step(name, command, 120, timing=True)


def gpu_tests(*arguments: str) -> list[str]:
    """The GPU tests, their outcomes printed one by one; a warning is no failure here."""
    return [PYTHON, "-m", "pytest", "-v", "-m", "gpu", "-W", "default", *arguments]


def check(state: Path, name: str, seconds: float, *arguments: str, rehearsed: bool = False) -> Step:
    """Tests by eight workers, which compile kernels at the same time."""
    command = gpu_tests("-n8", f"--junitxml={state / 'logs' / name}.xml", *arguments)
    return Step(name, command, seconds, [*command, "-n0"] if rehearsed else None)


def sanitize(tool: str) -> Step:
    """A tool of compute-sanitizer, to which torch's cache of memory would hide the bounds."""
    program = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9"]
    command = [*program, *gpu_tests("-n0", "-k", SANITIZED, *PROVING)]
    return Step(tool, command, 120, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def train(state: Path, role: str) -> Step:
    """Training with the settings of the released pair."""
    run = state / "runs" / role
    settings = ROOT / "dsmooth" / "pretrained" / "mnist" / role / "config.json"
    command = [PYTHON, "-m", "dsmooth", "train", role, f"--out={run}", f"--config={settings}"]
    command += ["--resume"] * any(run.glob("checkpoint*.safetensors"))
    tiny = ["--n-filters=4", "--n-resnet=1", "--images=16", "--evaluations=1"]
    tiny.append("--evaluation-images=4")
    return Step(f"train-{role}", command, 120, [*command, *tiny], timing=True)


def preflight() -> None:
    """Print the versions of the machine, its clocks, and the modules that it lacks."""
    print("Python", sys.version)
    for name in ("torch", "triton", "numpy", "pytest", "setuptools"):
        try:
            print(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            print(name, "is not installed")
    clocks = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    for program, *arguments in (
        ("nvcc", "--version"),
        ("nvidia-smi", f"--query-gpu={clocks}", "--format=csv"),
    ):
        if shutil.which(program):
            subprocess.run([program, *arguments], check=False)
        else:
            print(program, "is not here")
    missing = [f"{name} (wheel: {CARRIED[name]})" for name in CARRIED if not find_spec(name)]
    missing += [f"{name} (no wheel)" for name in EXPECTED if not find_spec(name)]
    print("missing:", ", ".join(missing) or "nothing")


def run(command: Sequence[str], environment: Any, log: Path, limit: float) -> int | None:
    """The exit status, None if it had to be killed; SIGTERM is its word to stop in time."""
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            print(error, file=file)
            return 127
        for sign, seconds in ((signal.SIGTERM, limit), (signal.SIGKILL, GRACE)):
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, sign)
        process.wait()
    return None


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


class Day:
    """Record of what was done so far, in a folder of state, and its copy for whoever asked."""

    def __init__(self, state: Path, out: Path) -> None:
        self.state, self.out = state, out
        (state / "logs").mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        path = state / "day.json"
        self.steps: dict[str, Any] = json.loads(path.read_text())["steps"] if path.exists() else {}

    def failed(self, *names: str) -> list[str]:
        """The steps of these that failed."""
        return [name for name in names if self.steps.get(name, {}).get("outcome") in FAILED]

    def note(self, name: str, outcome: str, seconds: float = 0, text: str = "") -> None:
        """Note a step, and bring the output folder up to date."""
        self.steps[name] = {"outcome": outcome, "seconds": round(seconds, 1), "text": text}
        write(self.state / "day.json", json.dumps({"steps": self.steps}, indent=1).encode())
        write(self.state / "day.md", self.table().encode())
        for file in ("day.json", "day.md", "measured.json"):
            if self.out != self.state and (self.state / file).exists():
                write(self.out / file, (self.state / file).read_bytes())
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add(self.state / "logs", "logs")  # with reports and traces
            for path in sorted(self.state.glob("runs/*/*")):
                if path.name in ("config.json", "log.jsonl", "model.safetensors"):
                    tar.add(path, path.relative_to(self.state))
        write(self.out / "logs.tar.gz", archive.getvalue())
        print(f"{name}: {outcome}, {seconds:.0f} s. {text}", flush=True)

    def table(self) -> str:
        """The steps, and what benchmarks/on_gpu.py measured."""
        rows = ["| step | outcome | seconds | last line |", "|---|---|---|---|"]
        for name, step in self.steps.items():
            text = step["text"].replace("|", "/")
            rows.append(f"| {name} | {step['outcome']} | {step['seconds']:.0f} | {text} |")
        rows += ["", "| case | time | img/s | TFLOP/s | TB/s |", "|---" * 5 + "|"]
        measured = self.state / "measured.json"
        results = json.loads(measured.read_text())["results"] if measured.exists() else {}
        for name, found in results.items():
            cells = [name, f"{1e3 * found['seconds'][0]:.4g} ms"]
            cells += [str(found.get(f"{unit}_per_s", "")) for unit in ("img", "tflop", "tb")]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows) + "\n"


def attempt(step: Step, day: Day, left: float, rehearse: bool) -> None:
    """Run a step and note its outcome, unless it is done or must be left out."""
    command = step.rehearsal if rehearse else step.command
    wrong = day.failed(*PROVES) if step.timing else []
    reason = ""
    if command is None:
        reason = "needs a GPU"
    elif wrong:
        reason = f"{' and '.join(wrong)} failed"
    elif step.seconds > left:
        reason = f"takes {step.seconds:.0f} s, {max(left, 0):.0f} s are left"
    if reason or command is None:
        day.note(step.name, "skipped", text=reason)
        return
    log, limit = day.state / "logs" / f"{step.name}.log", min(step.limit, left)
    started = time.monotonic()
    status = run(command, os.environ | ENVIRONMENT | step.environment, log, limit)
    took = time.monotonic() - started
    outcome = {0: "done", STOPPED: "to be continued"}.get(status, "failed")
    if outcome == "failed" and took >= limit:
        outcome = "too long"
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    day.note(step.name, outcome, took, last.strip()[:200])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9, help="what this call may take")
    parser.add_argument("--state", type=Path, default=BUILD / "gpu-day", help="what is done")
    parser.add_argument("--out", type=Path, help="results; $OUT if it is set, else as --state")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--preflight", action="store_true", help="describe the machine, and stop")
    wheels = {"nargs": "?", "type": Path, "const": WHEELS}
    parser.add_argument("--wheels", **wheels, help="gather wheels in this folder, and stop")
    options = parser.parse_args(arguments)
    if options.preflight:
        preflight()
        return 0
    if options.wheels:  # for CPython 3.12 on x86-64 Linux
        command = [PYTHON, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d"]
        command += [str(options.wheels), "--implementation=cp", "--python-version=3.12"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        return subprocess.run([*command, *CARRIED.values()]).returncode
    state = options.state.resolve()
    out = options.out or Path(os.environ.get("OUT") or state)
    planned = steps(state)
    names = [step.name for step in planned]
    for name in options.only or ():
        if name not in names:
            parser.error(f"{name!r} is no step: they are {', '.join(names)}")
    day, end = Day(state, out.resolve()), time.monotonic() + 60 * options.minutes
    for step in planned:
        done = day.steps.get(step.name, {}).get("outcome") == "done" and not step.always
        if step.name in (options.only or names) and not done:
            attempt(step, day, end - time.monotonic(), options.rehearse)
            if step.name in PREPARES and day.failed(step.name):
                break
    print(day.table())
    return int(any(step["outcome"] in FAILED for step in day.steps.values()))


if __name__ == "__main__":
    sys.exit(main())
