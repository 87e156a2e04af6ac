"""Run the tests and measurements that need a GPU, the most important first.

    python tools/gpu_day.py [--minutes 9] [--state build/gpu-day] [--only STEP ...]

A call runs the steps that are not done; one that may take longer than the time left waits for the
next call. If a smoke test of a family (sampler, ops, training) fails, the family is not timed. The
state has day.json with the outcomes, measured.json and logs, and is copied to the folder $OUT, if
that is set. It needs dsmooth, built for CUDA, and its tests. Exit status 1: a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 500  # seconds of one step
ON_GPU = [sys.executable, "benchmarks/on_gpu.py"]
TESTS = [sys.executable, "-m", "pytest", "-v", "-n8", "-m", "gpu", "-W", "default"]
TRAIN = [sys.executable, "-m", "dsmooth", "train", "noisy", "--preset=mnist", "--resume"]
# The tests of each family, and the expression (-k) that chooses its smoke tests: each kernel, dtype
# and conditioning against its reference; eight warps; streams and graphs.
FAMILIES = {
    "sampler": (
        ["tests/sampling"],
        "near_the_network or (same_bits and bfloat16) or a_graph_draws or outlive"
        " or current_stream or failed_call",
    ),
    "ops": (
        ["tests/functional"],
        "(size1-5 and none) or (size2-40 and bfloat16) or (size3-160 and bfloat16 and down) or tf32"
        " or (triton-1 and last and bfloat16) or (triton-3 and contiguous and float32)",
    ),
    "training": (["tests/training", "tests/functional"], "replayed or of_the_cpu or of_pytorch"),
}
OF_A_STEP = ("ops", "training")
# compute-sanitizer slows kernels a hundredfold: few cases.
SANITIZED = [*TESTS, "-n0", "-k", "size1-5 and none and bfloat16", "tests/functional"]
SANITIZER = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode=9"]


class Step(NamedTuple):
    """A command, the seconds that it should take, and the families whose numbers it times."""

    name: str
    seconds: float
    command: list[str]
    families: tuple[str, ...] = ()


def steps(state: Path) -> list[Step]:
    """In the order in which they run."""

    def smoke(family: str) -> Step:
        files, chosen = FAMILIES[family]
        return Step(f"smoke-{family}", 60, [*TESTS, "-x", "-k", chosen, *files])

    def measure(case: str, seconds: float, *families: str) -> Step:
        return Step(case, seconds, [*ON_GPU, case, f"--out={state}/measured.json"], families)

    return [
        Step("doctor", 20, [sys.executable, "-m", "dsmooth", "doctor"]),
        smoke("sampler"),
        measure("sampler-mnist-2112", 30, "sampler"),
        *map(smoke, OF_A_STEP),
        measure("preset", 360, *OF_A_STEP),
        measure("sampler", 150, "sampler"),
        measure("step-mnist", 240, *OF_A_STEP),
        measure("step-cifar", 400, *OF_A_STEP),
        measure("loss", 90, "ops"),
        Step("tests-ops", 400, [*TESTS, "tests/functional"]),
        Step("tests-others", 300, [*TESTS, "--ignore=tests/functional"]),
        *(Step(t, 120, [*SANITIZER, f"--tool={t}", *SANITIZED]) for t in ("memcheck", "racecheck")),
        Step("train", 400, [*TRAIN, f"--out={state}/noisy"]),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu-day")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=())
    options = parser.parse_args(arguments)
    state, end = options.state.resolve(), time.monotonic() + 60 * options.minutes
    (state / "logs").mkdir(parents=True, exist_ok=True)
    file = state / "day.json"
    done: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    for step in steps(state):
        left = min(end - time.monotonic(), LIMIT)
        wrong = [f for f in step.families if done.get(f"smoke-{f}", "done") != "done"]
        if done.get(step.name) == "done" or step.name not in (options.only or step.name):
            continue
        if wrong or step.seconds > left:
            print(f"{step.name}: skipped, {f'{wrong} failed' if wrong else f'{left:.0f} s left'}")
            continue
        with (state / "logs" / f"{step.name}.log").open("a") as log:
            command = ["timeout", "--kill-after=20", f"{left:.0f}", *step.command]
            print("$", *command, file=log, flush=True)
            status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
        done[step.name] = {0: "done", 124: "too long"}.get(status, f"failed ({status})")
        print(f"{step.name}: {done[step.name]}", flush=True)
        file.write_text(json.dumps(done, indent=1))
        if os.environ.get("OUT"):
            shutil.copytree(state, os.environ["OUT"], dirs_exist_ok=True)
    return int(any(outcome != "done" for outcome in done.values()))


if __name__ == "__main__":
    sys.exit(main())
