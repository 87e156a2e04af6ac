"""Run benchmark suites, save and draw the results, and compare them with saved ones.

python benchmarks                              every suite, about half an hour
python benchmarks sampler logistic_mixture --quick
python benchmarks --compare benchmarks/results/epyc-zen4-2-cores.json
python benchmarks --write-docs                 docs/benchmarks.md and the README's table
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import tyro

from benchmarks import figures, results, write_docs

FOLDER = Path(__file__).resolve().parent
FILE = "results.json"
NO_CASES = 5  # pytest's exit status where -k leaves none
SUITES = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
Suite = tyro.extras.literal_type_from_choices(SUITES)


@dataclass(frozen=True)
class Options:
    """Run benchmark suites against the installed dsmooth."""

    suites: Annotated[tuple[Suite, ...], tyro.conf.Positional] = ()
    """Suites to run; all of them by default."""
    quick: bool = False
    """Only the cases that take seconds."""
    cases: str | None = None
    """Only cases whose name matches this expression, as for pytest's -k."""
    out: Path = Path("benchmark-results")
    """Folder for the figure and results.json; results of other cases in it are kept."""
    compare: Path | None = None
    """An earlier results.json: print which differences exceed the spread."""
    write_docs: bool = False
    """Write docs/benchmarks.md and the README's table from the committed results, and stop."""


def main() -> int:
    """Run the suites of the command line; returns the exit status."""
    options = tyro.cli(Options, prog="python benchmarks", config=(tyro.conf.FlagCreatePairsOff,))
    if options.write_docs:
        write_docs.write()
        return 0
    path = options.out.resolve() / FILE
    try:
        saved = None if options.compare is None else results.load(options.compare)
        before = results.load(path) if path.exists() else []
    except (OSError, ValueError) as error:
        print(f"python benchmarks: error: {error}", file=sys.stderr)
        return 2
    path.parent.mkdir(parents=True, exist_ok=True)
    statuses = [run(suite, path, options) for suite in options.suites or SUITES]
    after = results.load(path) if path.exists() else []
    measured = [result for result in after if result not in before]
    if measured:  # the suite `launches` counts and has no times
        show(measured, path)
    if saved is not None:
        print(*results.compare(saved, measured), sep="\n")
    return max(status for status in (0, *statuses) if status != NO_CASES)


def run(suite: str, path: Path, options: Options) -> int:
    """Run a suite, which adds its results to a file, and return pytest's exit status."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-s", "--no-header", f"--results={path}"),
        f"bench_{suite}.py",
        *("-m", "quick" if options.quick else "not smoke"),
        *([f"-k={options.cases}"] if options.cases else []),
    ]
    # In this folder no source tree hides the installed package.
    return subprocess.run(command, cwd=FOLDER).returncode


def show(measured: list[results.Result], path: Path) -> None:
    """Print a table of results, and draw the figure of all results in the file."""
    table = results.table(measured)
    if sys.stdout.isatty():
        table.show()
    else:
        print(table.markdown())
    busy = [result for result in measured if result["load"] > result["cores"]]
    if busy:
        worst = max(busy, key=lambda result: result["load"])
        print(
            f"Warning: the load exceeded the {worst['cores']} cores in {len(busy)} of "
            f"{len(measured)} cases (up to {worst['load']:.1f}, in {results.name_of(worst)}): "
            "other programs ran at the same time."
        )
    figure = path.with_name("speedup.png")
    if figures.draw(results.load(path), figure):
        print(f"Figure:  {figure}")
    print(f"Results: {path}")


if __name__ == "__main__":
    sys.exit(main())
