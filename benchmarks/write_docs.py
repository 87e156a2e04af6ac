"""Write the table of docs/benchmarks.md and that of the README.

They come from the committed results, by `python benchmarks --write-docs` after a file was added to
benchmarks/results/. A test fails where they are not what the results give.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import records
from benchmarks.records import Result
from dsmooth.text import Table

PROJECT = Path(__file__).resolve().parents[1]
SAVED = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "benchmarks.md"
README = PROJECT / "README.md"
README_MACHINE = SAVED / "epyc-zen5-2-cores.json"  # whose numbers the README shows
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# Cases that the page leaves out: those between others in size, and those like another.
OMITTED = re.compile(
    r"sampler (mnist-(2|4|8|16|32|128|256)|cifar-(4|64)|exact-.*|size-.*)|.*-forward"
    r"|logistic_mixture (mnist-(continuous|discretized)|cifar-continuous)-.*"
    r"|training_step .*-two-threads|gated_resnet F16-.*|sampler cifar-1(6-bf16)?"
    r"|logistic_mixture mnist-16-all-.*|training_step F16-.*"
)


def saved_results() -> dict[Path, list[Result]]:
    """The committed results, by file."""
    return {path: records.load(path) for path in sorted(SAVED.glob("*.json"))}


def texts() -> dict[Path, str]:
    """The texts of the page and of the README, by path."""
    saved = saved_results()
    return {
        PAGE: between_marks(PAGE.read_text(), "\n".join(page_table(saved))),
        README: between_marks(README.read_text(), readme_lines(saved)),
    }


def write() -> None:
    for path, text in texts().items():
        path.write_text(text)


def between_marks(page: str, generated: str) -> str:
    """The page with this text between its two marks; the rest is written by hand."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page must hold {BEGIN} and then {END}, got one without")
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def page_table(saved: dict[Path, list[Result]]) -> Iterator[str]:
    """A row for each case with a cell for each machine, and how each machine was measured."""
    names = {(r["suite"], r["case"]): records.name_of(r) for rs in saved.values() for r in rs}
    rows = {place: name for place, name in names.items() if not OMITTED.fullmatch(name)}
    yield f"\n{table(saved, dict(sorted(rows.items())), share=True).markdown()}\n"
    for path, measured in saved.items():
        versions, loads = measured[0]["versions"], [result["load"] for result in measured]
        commits = ", ".join(sorted({result["commit"] for result in measured}))
        yield (
            f"- {machine(measured)}: `benchmarks/results/{path.name}`, torch {versions['torch']}, "
            f"commit {commits}, load average {min(loads):.1f} to {max(loads):.1f}."
        )
    yield ""


def readme_lines(saved: dict[Path, list[Result]]) -> str:
    """Images per second on one machine, and the ratios to cached sampling in PyTorch."""
    cases = {result["case"]: result for result in saved[README_MACHINE]}
    rows = {"1, float32": "mnist-1", "64, float32": "mnist-64", "64, bfloat16": "mnist-64-bf16"}

    def row(words: str, result: Result) -> list[str]:
        ratios = (result["ratios"][name][0] for name in ("cached PyTorch", "compiled"))
        return [words, f"{result['img_per_s']:.3g}", *(f"{ratio:.3g}x" for ratio in ratios)]

    cells = [row(words, cases[case]) for words, case in rows.items()]
    head = ["images at once", "images/s", "faster than cached PyTorch", "than compiled"]
    return f"\n{Table(head, cells).markdown()}\n"


def table(
    saved: dict[Path, list[Result]], rows: dict[tuple[str, str], str], share: bool = False
) -> Table:
    """Cases (suite, case) by their words; on each machine the rate, ratios and perhaps the share of
    its limit, or a dash."""
    machines = [{(r["suite"], r["case"]): r for r in measured} for measured in saved.values()]

    def cell(result: Result | None) -> str:
        if result is None:
            return "–"
        rate = records.rate_text(result)
        rate += "" if result["dtype"] == "float32" else f" ({result['dtype']})"
        limit = records.limit_text(result) if share else ""
        return ", ".join(filter(None, (rate, records.ratios_text(result), limit)))

    cells = [[words, *(cell(m.get(place)) for m in machines)] for place, words in rows.items()]
    return Table(["", *map(machine, saved.values())], cells)


def machine(measured: list[Result]) -> str:
    return f"{measured[0]['device'].removesuffix(' Processor')}, {measured[0]['instruction_set']}"
