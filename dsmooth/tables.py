"""Tables of words and numbers, as Markdown and on the terminal; a report shows them as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .progress import significant
from .results import FLOOR, BitsResult, Distance, FidelityScores, FrechetResult
from .text import decimals, escape_control

COMPARABLE = "* comparable with discrete bits/dim of the literature"


@dataclass(frozen=True)
class Table:
    """Rows of text cells. The first column holds words, the others numbers.

    Further lines of a cell are small print, which Markdown leaves out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        rows = [[cell.partition("\n")[0] for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *rows))

    def show(self) -> None:
        """Print the table on the terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(title=escape_control(self.title) or None)
        for i, title in enumerate(self.head):
            table.add_column(title, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(escape_control, row))
        Console(highlight=False, markup=False).print(table)


def bits_table(result: BitsResult, title: str = "") -> Table:
    """Bits/dim of the models in every convention. A column without numbers is left out."""
    rows = [(name, row) for name, bits in result.models.items() for row in bits.conventions]
    columns: dict[str, list[float | None]] = {
        "bits/dim": [row.value for _, row in rows],
        "± images": [row.error for _, row in rows],
        "± repeats": [row.repeat_error for _, row in rows],
    }
    columns = {head: values for head, values in columns.items() if set(values) != {None}}
    words = [f"{name}: {row.name}{' *' * row.comparable}\n{row.meaning}" for name, row in rows]
    numbers = zip(*([decimals(v) for v in values] for values in columns.values()), strict=True)
    cells = [[word, *row] for word, row in zip(words, numbers, strict=True)]
    return Table(["", *columns], cells, title)


def frechet_table(result: FrechetResult, title: str) -> Table:
    """The distance of the samples, other scores if there are some, and those of the floor."""
    sets = [result.distances["samples"], result.distances.get(FLOOR)]
    words = f"{result.name}, ± standard error by the bootstrap"
    rows = [[words, *(_distance(distance) for distance in sets)]]
    scores = [(distance and distance.scores) or FidelityScores() for distance in sets]
    kid, inception = "Kernel distance", "Inception-style score"
    if result.extractor.is_fid:
        kid, inception = "KID", "Inception score"
    for words, values in (
        (kid, [(s.kernel_distance, s.kernel_distance_deviation) for s in scores]),
        (inception, [(s.inception_score, s.inception_score_deviation) for s in scores]),
        ("Precision", [(s.precision, None) for s in scores]),
        ("Recall", [(s.recall, None) for s in scores]),
    ):
        if values[0][0] is not None:
            deviation = ", ± standard deviation" if values[0][1] is not None else ""
            rows.append([words + deviation, *(_spread(*value) for value in values)])
    counts = [0 if distance is None else distance.n_images for distance in sets]
    return Table(["", f"{counts[0]:,} samples", f"{counts[1]:,} real images"], rows, title)


def _distance(distance: Distance | None) -> str:
    return "–" if distance is None else decimals(distance.value, error=distance.error)


def _spread(value: float | None, deviation: float | None) -> str:
    """A score, with its standard deviation if there is one; a dash where there is no score."""
    numbers = [number for number in (value, deviation) if number is not None]
    return " ± ".join(significant(number, 4) for number in numbers) or decimals(None)
