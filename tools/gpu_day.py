"""Everything that waits for a GPU, in order: python tools/gpu_day.py --minutes 60

Builds with CUDA, runs the doctor, the GPU tests and compute-sanitizer, measures, proposes tunings
and trains the released pair. Each step is a command of its own, of ten minutes at most, whose
output goes to OUT/NAME.log. After each one OUT/day.json and OUT/day.md, a table, are written.
Called again, it goes on: what is done is not done again, training continues from its checkpoint.
When time is short, the steps that matter least are left out. --rehearse does on the CPU, with the
smallest sizes, what needs no GPU. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600.0  # seconds of one step
SLICE = 480.0  # seconds of training, before it is told to save and stop
GRACE = 30.0  # seconds from that word to the end
STOPPED = 128 + signal.SIGTERM  # the exit status of training that saved and stopped
PYTHON = sys.executable
CONTINUED, FAILED = "to be continued", ("failed", "too long")


@dataclass(frozen=True)
class Step:
    """A command: with what it is rehearsed (None: it is not), how long it should take, in seconds,
    and its rank, 0 for what is left out last. A slice is stopped after `limit` and goes on later.
    """

    name: str
    command: Sequence[str]
    rehearsal: Sequence[str] | None
    seconds: float
    rank: int
    limit: float = LIMIT
    slice: bool = False


def steps(out: Path) -> list[Step]:
    """In the order in which they run."""
    gpu_tests = ["-m", "pytest", "-n0", "-q", "-m", "gpu"]
    return [
        Step(
            "build",
            [PYTHON, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."],
            None, 120, 0,
        ),
        Step("doctor", *twice([PYTHON, "-m", "dsmooth", "doctor"]), 20, 0),
        Step("tests", [PYTHON, *gpu_tests], [PYTHON, *gpu_tests, *SMALL_TESTS[:1]], 240, 1),
        *(
            Step(tool, ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", PYTHON,
                        *gpu_tests, "-k", SMALL, *SMALL_TESTS], None, 300, 4)
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
        ),
        *(measure(case, out, seconds, rank) for case, seconds, rank in (
            ("step-mnist", 240, 2), ("step-cifar", 400, 2), ("sampler", 300, 2),
            ("two-step", 120, 3), ("loss", 60, 3),
        )),
        *(
            Step(f"tune-{name}", [PYTHON, f"benchmarks/tune_{script}.py", *sizes], None, 400, 5)
            for name, script, sizes in (
                ("cifar", "gated_resnet", ["--filters=160", "--size=32", "--batch=64"]),
                ("mnist", "gated_resnet", ["--filters=40", "--size=28", "--batch=80"]),
                ("loss", "logistic_mixture", []),
            )
        ),
        *(train(role, out) for role in ("noisy", "denoiser")),
    ]  # fmt: skip


# compute-sanitizer slows kernels a hundredfold: the smallest image, few filters.
SMALL = "size0 or size1 or (exact and bfloat16) or (teacher_forced and none and continuous)"
SMALL_TESTS = [
    f"tests/test_{name}.py"
    for name in ("gpu_gated_resnet", "gpu_logistic_mixture", "cached_sampler_cuda")
]


def twice(command: list[str]) -> tuple[list[str], list[str]]:
    """A command that is its own rehearsal."""
    return command, command


def measure(case: str, out: Path, seconds: float, rank: int) -> Step:
    """A case of benchmarks/on_gpu.py."""
    command = [PYTHON, "benchmarks/on_gpu.py", case, f"--out={out / 'measured.json'}"]
    return Step(case, command, [*command, "--device=cpu", "--tiny"], seconds, rank)


def train(role: str, out: Path) -> Step:
    """A slice of training with the settings of the released pair."""
    from dsmooth.runs import RunFolder

    run = RunFolder(out / "runs" / role)
    command = [PYTHON, "-m", "dsmooth", "train", role, f"--out={run.path}"]
    command += ["--resume"] * run.can_resume()
    settings = ROOT / "dsmooth" / "pretrained" / "mnist" / role / "config.json"
    tiny = ["--n-filters=4", "--n-resnet=1", "--images=16", "--evaluations=1"]
    tiny.append("--evaluation-images=4")
    return Step(
        f"train-{role}", [*command, f"--config={settings}"], [*command, *tiny],
        120, 3, SLICE, slice=True,
    )  # fmt: skip


def chosen(waiting: Sequence[Step], seconds: float) -> set[str]:
    """The names of the steps that fit into the time, those of the lowest rank first."""
    names = set()
    for step in sorted(waiting, key=lambda step: step.rank):
        if step.seconds <= seconds:
            names.add(step.name)
            seconds -= step.seconds
    return names


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


def meaning(step: Step, status: int | None, too_long: bool) -> str:
    """The outcome of a step with this exit status."""
    if status == 0:
        return "done"
    if step.slice and status == STOPPED:
        return CONTINUED
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

    def is_done(self, name: str) -> bool:
        return self.outcome(name) == "done"

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


def go(
    make: Callable[[], list[Step]],
    day: Day,
    seconds: float,
    rehearse: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Do what is not done, as far as the time reaches; then again what is to be continued.

    Steps are made anew before each one: a command may depend on what the last one left.
    """
    end = clock() + seconds
    again = False
    while True:
        for place, step in enumerate(make()):
            before = day.outcome(step.name)
            if before == "done" or (again and before != CONTINUED):
                continue
            waiting = [later for later in make()[place:] if not day.is_done(later.name)]
            if not attempt(waiting, day, end, rehearse, clock) and step.name == "build":
                return
        unfinished = [step for step in make() if day.outcome(step.name) == CONTINUED]
        if not unfinished or end - clock() < min(step.seconds for step in unfinished):
            return
        again = True


def attempt(
    waiting: list[Step], day: Day, end: float, rehearse: bool, clock: Callable[[], float]
) -> bool:
    """Do the first of the steps, unless there is no time for it; whether nothing failed."""
    step, left = waiting[0], end - clock()
    command = step.rehearsal if rehearse else step.command
    if command is None:
        day.note(step.name, "skipped", text="needs a GPU")
    elif step.name not in chosen(waiting, left):
        text = f"takes {step.seconds:.0f} s, {max(left, 0):.0f} s are left"
        day.note(step.name, "skipped", text=text)
    else:
        log, started = day.out / f"{step.name}.log", clock()
        limit = min(step.limit, left)
        status = run(command, log, limit)
        took = clock() - started
        day.note(step.name, meaning(step, status, took >= limit), took, last_line(log))
    return day.outcome(step.name) not in FAILED


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
    day = Day(out)

    def wanted() -> list[Step]:
        return [step for step in steps(out) if step.name in (options.only or names)]

    go(wanted, day, 60 * options.minutes, options.rehearse)
    print(day.table())
    return int(any(step["outcome"] in FAILED for step in day.steps.values()))


if __name__ == "__main__":
    sys.exit(main())
