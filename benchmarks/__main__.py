"""Run benchmark suites, save the results, and compare them with saved ones.

python benchmarks                              every suite, about half an hour
python benchmarks sampler logistic_mixture --quick
python benchmarks --compare benchmarks/results/epyc-zen4-2-cores.json
python benchmarks --write-docs                 docs/benchmarks.md and the README's sentence
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import tyro

from benchmarks import records, write_docs

FOLDER = Path(__file__).resolve().parent
FILE = "results.json"
NO_CASES = 5  # pytest's exit status where -k leaves none
SUITES = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


@dataclass(frozen=True)
class Options:
    """Run benchmark suites against the installed dsmooth."""

    suites: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Suites to run; all of them by default."""
    quick: bool = False
    """Only the cases that take seconds."""
    cases: str | None = None
    """Only cases whose name matches this expression, as for pytest's -k."""
    out: Path = Path("benchmark-results")
    """Folder for results.json; results of other cases in it are kept."""
    compare: Path | None = None
    """An earlier results.json: print which differences exceed the spread."""
    write_docs: bool = False
    """Write docs/benchmarks.md and the README's sentence from the committed results, and stop."""


def main() -> int:
    """Run the suites of the command line; returns the exit status."""
    options = tyro.cli(Options, prog="python benchmarks", config=(tyro.conf.FlagCreatePairsOff,))
    if options.write_docs:
        write_docs.write()
        return 0
    unknown = [suite for suite in options.suites if suite not in SUITES]
    if unknown:
        print(f"unknown suite {unknown[0]!r}: the suites are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    try:
        saved = None if options.compare is None else records.load(options.compare)
    except (OSError, ValueError) as error:
        print(f"python benchmarks: error: {error}", file=sys.stderr)
        return 2
    measured, status = [], 0
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / FILE
    for suite in options.suites or SUITES:
        found, ended = run(suite, options)
        # Saved at once: the next suite may be interrupted.
        records.save(path, records.merge(records.load(path) if path.exists() else [], found))
        measured += found
        status = status or (0 if ended == NO_CASES else ended)
    if measured:
        show(measured, options.out)
    if saved is not None:
        print(*records.compare(saved, measured), sep="\n")
    return status


def run(suite: str, options: Options) -> tuple[list[records.Result], int]:
    """A suite's results, and pytest's exit status; after Ctrl-C those of the finished cases."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pytest-benchmark.json"
        # Run in this folder, where no source tree hides the installed package.
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-s", "--no-header", "--benchmark-quiet"),
            f"bench_{suite}.py",
            f"--benchmark-json={path}",
            # If -k leaves no case there is nothing to save.
            *("-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"),
            *("-m", "quick" if options.quick else "not smoke"),
            *([f"-k={options.cases}"] if options.cases else []),
        ]
        status = subprocess.run(command, cwd=FOLDER).returncode
        text = path.read_text() if path.exists() else ""
    found = json.loads(text)["benchmarks"] if text else []
    return [case["extra_info"] for case in found if case["extra_info"]], status


def show(measured: list[records.Result], folder: Path) -> None:
    """Print a table of results."""
    table = records.table(measured)
    if sys.stdout.isatty():
        table.show()
    else:
        print(table.markdown())
    busy = [result for result in measured if result["load"] > result["cores"]]
    if busy:
        worst = max(busy, key=lambda result: result["load"])
        print(
            f"Warning: the load exceeded the {worst['cores']} cores in {len(busy)} of "
            f"{len(measured)} cases (up to {worst['load']:.1f}, in {records.name_of(worst)}): "
            "other programs ran at the same time."
        )
    print(f"Results: {folder / FILE}")


if __name__ == "__main__":
    sys.exit(main())
