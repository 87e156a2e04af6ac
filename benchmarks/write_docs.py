"""Write the tables of docs/benchmarks.md and of the README, and the figures of the former.

They come from the committed results, by `python benchmarks --write-docs` after a file was added to
benchmarks/results/. A test fails where they are not what the results give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import figures, results
from benchmarks.results import Result
from dsmooth.tables import Table

PROJECT = Path(__file__).resolve().parents[1]
SAVED = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "benchmarks.md"
PICTURES = PROJECT / "docs" / "figures"
README = PROJECT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

FIGURES = """
![Cached sampling against plain sampling](figures/{stem}/speedup.png)

![Time against image size](figures/{stem}/image_size.png)
"""
# The rows of the README's table: (suite, case, words).
HIGHLIGHTS = (
    ("two_step", "mnist-64", "sampling, packaged pair F32 R2, batch 64, float32"),
    ("two_step", "mnist-64-bf16", "the same, bfloat16"),
    ("two_step", "mnist-1", "the same, one image, float32"),
    ("sampler", "mnist-64", "sampling, MNIST F40 R5, batch 64, float32"),
    ("training_step", "F40-R5-two-threads", "training step, MNIST F40 R5, batch 32"),
    ("logistic_mixture", "cifar-continuous-gradient", "loss + gradient, 16 x 32x32 RGB"),
)


def saved_results() -> dict[Path, list[Result]]:
    """The committed results, by file."""
    return {path: results.load(path) for path in sorted(SAVED.glob("*.json"))}


def texts() -> dict[Path, str]:
    """The texts of the page and of the README, by path."""
    saved = saved_results()
    sections = [line for path, measured in saved.items() for line in section(path, measured)]
    return {
        PAGE: between_marks(PAGE.read_text(), "\n".join(sections) + "\n"),
        README: between_marks(README.read_text(), "\n".join(readme_table(saved))),
    }


def write() -> None:
    for path, text in texts().items():
        path.write_text(text)
    for file, measured in saved_results().items():
        folder = PICTURES / file.stem
        folder.mkdir(parents=True, exist_ok=True)
        for path in figures.draw_all(measured, folder):
            print(path.relative_to(PROJECT))


def between_marks(page: str, generated: str) -> str:
    """The page with this text between its two marks; the rest is written by hand."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page must hold {BEGIN} and then {END}, got one without")
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def section(path: Path, measured: list[Result]) -> Iterator[str]:
    first = measured[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    commits = ", ".join(sorted({result["commit"] for result in measured}))
    loads = [result["load"] for result in measured]
    yield f"""
## {first["device"]}, {first["cores"]} cores, {first["instruction_set"]}

Saved in `benchmarks/results/{path.name}`, by `python benchmarks`. Versions: {versions};
commit {commits}; load average {min(loads):.1f} to {max(loads):.1f}.
"""
    yield results.table(measured).markdown()
    yield FIGURES.format(stem=path.stem)


def readme_table(files: dict[Path, list[Result]]) -> Iterator[str]:
    """A row a case: its rate and ratios on each machine."""
    machines = [{(r["suite"], r["case"]): r for r in measured} for measured in files.values()]
    firsts = [measured[0] for measured in files.values()]
    names = [f"{r['device']}, {r['cores']} cores, {r['instruction_set']}" for r in firsts]
    yield f"\nBy `python benchmarks`, with torch {firsts[0]['versions']['torch']}:\n"
    rows = []
    for suite, case, words in HIGHLIGHTS:
        found = [measured.get((suite, case)) for measured in machines]
        rows.append([words, *(cell for result in found for cell in rate_and_ratios(result))])
    yield Table(["", *(head for name in names for head in (name, "against"))], rows).markdown()
    batch, ratio = max(figures.PUBLISHED.items())
    yield (
        "\nPublished, of the same idea: CIFAR-10, F160 R5, batch "
        f"{batch}, a K40 GPU, 4.4 img/s, {ratio}x plain (Ramachandran et al., 2017).\n"
    )


def rate_and_ratios(result: Result | None) -> list[str]:
    """Two cells of the README's table, dashes for a case that was not measured."""
    if result is None:
        return ["–", "–"]
    dtype = "" if result["dtype"] == "float32" else f" ({result['dtype']})"
    return [results.rate_text(result) + dtype, results.ratios_text(result)]
