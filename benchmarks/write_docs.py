"""Write the tables of docs/benchmarks.md and of the README, and the figures of the former.

They come from the committed results, by `python benchmarks --write-docs` after a file was added to
benchmarks/results/. A test fails where they are not what the results give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import figures, results
from benchmarks.results import Result

PROJECT = Path(__file__).resolve().parents[1]
SAVED = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "benchmarks.md"
PICTURES = PROJECT / "docs" / "figures"
README = PROJECT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

FIGURES = """
![Cached sampling against plain sampling](figures/speedup.png)

![Roofline](figures/roofline.png)

![Time against image size](figures/image_size.png)
"""
# The rows of the README's table: (suite, case, words).
HIGHLIGHTS = (
    ("sampler", "mnist-1", "cached sampling, MNIST F40 R5, one image"),
    ("sampler", "mnist-64", "the same, batch 64"),
    ("sampler", "mnist-64-bf16", "the same, batch 64, bfloat16"),
    ("sampler", "cifar-64", "cached sampling, CIFAR-10 F160 R5, batch 64"),
    ("two_step", "mnist-stack-64", "two-step sampling, MNIST, the paper's denoiser, batch 64"),
    ("training_step", "F40-R5-two-threads", "training step, MNIST F40 R5, bfloat16, batch 32"),
    (
        "logistic_mixture",
        "cifar-continuous-gradient",
        "loss + gradient, 16 x 32x32 RGB, continuous",
    ),
    ("logistic_mixture", "cifar-discretized-gradient", "the same, discretized"),
    ("data", "mnist", "noisy batches of MNIST, from their seed alone"),
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
    PICTURES.mkdir(exist_ok=True)
    everything = [result for measured in saved_results().values() for result in measured]
    for path in figures.draw_all(everything, PICTURES):
        print(path.relative_to(PROJECT))


def between_marks(page: str, generated: str) -> str:
    """The page with this text between its two marks; what stands outside is written by hand."""
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
## {first["device"]}, {first["cores"]} cores

Saved in `benchmarks/results/{path.name}`, by `python benchmarks`. Versions: {versions}; instruction
set {first["instruction_set"]}; commit {commits}; load average {min(loads):.1f} to {max(loads):.1f}.

| {" | ".join(results.COLUMNS)} |
{"|---" * len(results.COLUMNS)}|"""
    for result in measured:
        yield "| " + " | ".join(results.cells(result)) + " |"
    yield FIGURES


def readme_table(files: dict[Path, list[Result]]) -> Iterator[str]:
    measured = {(r["suite"], r["case"]): r for rs in files.values() for r in rs}
    chosen = [(h[2], measured[h[:2]]) for h in HIGHLIGHTS if h[:2] in measured]
    first = chosen[0][1]
    yield f"""
Measured on {first["cores"]} cores of an {first["device"]} ({first["instruction_set"]}), torch
{first["versions"]["torch"]}, by `python benchmarks`:

| | rate | against |
|---|---|---|"""
    for words, result in chosen:
        yield f"| {words} | {results.rate_text(result)} | {results.ratios_text(result)} |"
    batch, ratio = max(figures.PUBLISHED.items())
    yield (
        "| published: the same idea on CIFAR-10, F160 R5, batch "
        f"{batch}, K40 GPU (Ramachandran et al., 2017) | 4.4 img/s | {ratio}x plain |"
    )
    yield ""
