"""Tables of words and numbers, as Markdown and on the terminal; a report shows them as HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

COMPARABLE = "* comparable with discrete bits/dim of the literature"
# Columns of the table of bits/dim: title, and the key of a convention.
_BITS = (
    ("bits/dim", "value"),
    ("± images", "standard_error"),
    ("± repeats", "repeat_error"),
)


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

        table = RichTable(title=shown(self.title) or None)
        for i, title in enumerate(self.head):
            table.add_column(title, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(shown, row))
        Console(highlight=False, markup=False).print(table)


# Control characters but for tab and newline, marks that turn the direction of writing, and halves
# of surrogate pairs, which have no UTF-8.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""Text of anybody's file for a terminal or a page: what would act on it is \xNN or \uNNNN."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def plain_text(text: str) -> str:
    """Words of a file as one line of Markdown that means nothing but itself."""
    line = shown(" ".join(text.split()))
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", escape(line, quote=False))


def bits_table(models: Mapping[str, Any], title: str = "") -> Table:
    """Bits/dim of the pair and of the plain model, as far as they are there, in every convention.

    models: the numbers that `measure_bits` gives. Columns that no convention fills are left out.
    """
    there = [name for name in ("pair", "plain") if name in models]
    conventions = [(name, each) for name in there for each in models[name]["conventions"]]
    columns = [
        (words, key)
        for words, key in _BITS
        if any(each[key] is not None for _, each in conventions)
    ]
    rows = [
        [
            f"{name}: {each['name']}{' *' * bool(each['comparable'])}\n{each['meaning']}",
            *(decimals(each[key]) for _, key in columns),
        ]
        for name, each in conventions
    ]
    return Table(["", *(words for words, _ in columns)], rows, title)


def decimals(value: float | None, digits: int = 4, error: float | None = None) -> str:
    """A number with its standard error, if there is one; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f} %"
