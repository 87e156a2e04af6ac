"""Everything that waits for a GPU, what settles most first: python tools/gpu_day.py --minutes 9

Each step is a command whose output goes to OUT/NAME.log. After each one OUT/day.json and a table,
OUT/day.md, are written. A step that should take longer than is left is skipped. Called again, the
tool goes on: what is done is not done again, training continues from its checkpoint. --rehearse
does on the CPU, with the smallest sizes, what needs no GPU. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600.0  # seconds of one step
GRACE = 30.0  # seconds from the word to stop to the end
STOPPED = 128 + signal.SIGTERM  # the exit status of training that saved and stopped
PYTHON = sys.executable
FAILED = ("failed", "too long")


@dataclass(frozen=True)
class Step:
    """A command, its rehearsal (None: it has none), and how many seconds it should take.

    A step is told to stop after `limit` seconds; training saves then, and goes on later.
    """

    name: str
    command: Sequence[str]
    rehearsal: Sequence[str] | None
    seconds: float
    limit: float = LIMIT


def steps(out: Path) -> list[Step]:
    """In the order in which they run."""
    gpu_tests = [PYTHON, "-m", "pytest", "-n0", "-q", "-m", "gpu"]
    install = [PYTHON, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    doctor = [PYTHON, "-m", "dsmooth", "doctor"]
    smallest = [*gpu_tests, "-k", SMALL, *SMALL_TESTS]
    tuned = {
        "cifar": ["gated_resnet", "--filters=160", "--size=32", "--batch=64"],
        "mnist": ["gated_resnet", "--filters=40", "--size=28", "--batch=80"],
        "loss": ["logistic_mixture"],
    }
    return [
        Step("build", install, None, 120),
        Step("doctor", doctor, doctor, 20),
        Step("small-tests", smallest, smallest, 240),
        measure("sampler", out, 300),
        measure("step-mnist", out, 240),
        measure("step-cifar", out, 400),
        measure("two-step", out, 120),
        measure("loss", out, 60),
        Step("tests", gpu_tests, None, 400),
        *(
            Step(
                tool,
                ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", *smallest],
                None,
                300,
            )
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
        ),
        *(
            Step(f"tune-{name}", [PYTHON, "benchmarks/tune.py", *arguments], None, 400)
            for name, arguments in tuned.items()
        ),
        *(train(role, out) for role in ("noisy", "denoiser")),
    ]


# compute-sanitizer slows kernels a hundredfold: the smallest image, few filters.
SMALL = "size0 or size1 or (exact and bfloat16) or (teacher_forced and none and continuous)"
SMALL_TESTS = [
    f"tests/test_{name}.py"
    for name in ("gpu_gated_resnet", "gpu_logistic_mixture", "cached_sampler_cuda")
]


def measure(case: str, out: Path, seconds: float) -> Step:
    """A case of benchmarks/on_gpu.py."""
    command = [PYTHON, "benchmarks/on_gpu.py", case, f"--out={out / 'measured.json'}"]
    return Step(case, command, [*command, "--device=cpu", "--tiny"], seconds)


def train(role: str, out: Path) -> Step:
    """Training with the settings of the released pair."""
    from dsmooth.runs import RunFolder

    run = RunFolder(out / "runs" / role)
    command = [PYTHON, "-m", "dsmooth", "train", role, f"--out={run.path}"]
    command += ["--resume"] * run.can_resume()
    settings = ROOT / "dsmooth" / "pretrained" / "mnist" / role / "config.json"
    tiny = ["--n-filters=4", "--n-resnet=1", "--images=16", "--evaluations=1"]
    tiny.append("--evaluation-images=4")
    return Step(f"train-{role}", [*command, f"--config={settings}"], [*command, *tiny], 120)


def run(command: Sequence[str], log: Path, limit: float) -> int | None:
    """The exit status, None if it had to be killed; SIGTERM is its word to stop in time."""
    environment = os.environ | {"DSMOOTH_CUDA": "1", "PYTHONUNBUFFERED": "1"}
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


def meaning(status: int | None, too_long: bool) -> str:
    """The outcome of a step with this exit status."""
    if status == 0:
        return "done"
    if status == STOPPED:
        return "to be continued"
    return "too long" if too_long else "failed"


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


class Day:
    """Record of what was done so far, in OUT/day.json."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / "day.json"
        out.mkdir(parents=True, exist_ok=True)
        self.steps: dict[str, Any] = {}
        if self.path.exists():
            self.steps = json.loads(self.path.read_text())["steps"]

    def outcome(self, name: str) -> str | None:
        return self.steps[name]["outcome"] if name in self.steps else None

    def note(self, name: str, outcome: str, seconds: float = 0, text: str = "") -> None:
        """Note a step, and write both files."""
        before = self.steps.get(name, {}).get("seconds", 0)
        self.steps[name] = {"outcome": outcome, "seconds": round(before + seconds, 1), "text": text}
        described = {"steps": self.steps, "results": self.results()}
        for path, content in (
            (self.path, json.dumps(described, indent=1) + "\n"),
            (self.out / "day.md", self.table()),
        ):
            partial = path.with_suffix(".partial")
            partial.write_text(content)
            partial.replace(path)
        print(f"{name}: {outcome}, {seconds:.0f} s. {text}", flush=True)

    def results(self) -> dict[str, Any]:
        """Results that benchmarks/on_gpu.py wrote."""
        path = self.out / "measured.json"
        return dict(json.loads(path.read_text())["results"]) if path.exists() else {}

    def table(self) -> str:
        """The steps, and what was measured."""
        rows = ["| step | outcome | seconds | last line |", "|---|---|---|---|"]
        for name, step in self.steps.items():
            text = step["text"].replace("|", "/")
            rows.append(f"| {name} | {step['outcome']} | {step['seconds']:.0f} | {text} |")
        rows += ["", "| case | img/s | milliseconds | part of the limit |", "|---|---|---|---|"]
        for result in self.results().values():
            for found in result["found"]:
                times = ", ".join(f"{k} {1e3 * v[0]:.4g}" for k, v in found["seconds"].items())
                parts = ", ".join(f"{v:.0%} of {k}" for k, v in found["part_of_limit"].items())
                rows.append(f"| {found['case']} | {found['img_per_s']:.4g} | {times} | {parts} |")
        return "\n".join(rows) + "\n"


def attempt(step: Step, day: Day, left: float, rehearse: bool) -> None:
    """Run a step and note its outcome, unless it is done or the seconds that are left are few."""
    command = step.rehearsal if rehearse else step.command
    if day.outcome(step.name) == "done":
        return
    if command is None:
        day.note(step.name, "skipped", text="needs a GPU")
    elif step.seconds > left:
        text = f"takes {step.seconds:.0f} s, {max(left, 0):.0f} s are left"
        day.note(step.name, "skipped", text=text)
    else:
        log, started = day.out / f"{step.name}.log", time.monotonic()
        limit = min(step.limit, left)
        status = run(command, log, limit)
        took = time.monotonic() - started
        day.note(step.name, meaning(status, took >= limit), took, last_line(log))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="what this call may take")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-day")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    names = [step.name for step in steps(out)]
    for name in options.only or ():
        if name not in names:
            parser.error(f"{name!r} is no step: they are {', '.join(names)}")
    day, end = Day(out), time.monotonic() + 60 * options.minutes
    for step in steps(out):
        if step.name in (options.only or names):
            attempt(step, day, end - time.monotonic(), options.rehearse)
            if step.name == "build" and day.outcome("build") in FAILED:
                break
    print(day.table())
    return int(any(step["outcome"] in FAILED for step in day.steps.values()))


if __name__ == "__main__":
    sys.exit(main())
