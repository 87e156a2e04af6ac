"""Tables of words and numbers, and their three renderings: Markdown, HTML and the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

COMPARABLE = "* comparable with discrete bits/dim of the literature"
# Columns of the table of bits/dim: title, and the key of a convention.
_BITS = (
    ("bits/dim", "value"),
    ("± images", "standard_error"),
    ("± repeats", "repeat_error"),
    ("by eq. (4)", "equation_4"),
)


@dataclass(frozen=True)
class Table:
    """Rows of text cells. The first column holds words, the others numbers.

    Further lines of a cell are small print, which Markdown leaves out. totals: rows that stand out
    in HTML.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    totals: Collection[int] = ()

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        rows = [[cell.partition("\n")[0] for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *rows))

    def html(self, kind: str = "") -> str:
        """The table in HTML, without its title. kind: its class."""
        head = _html_row(self.head, 'th scope="col"', 'th scope="col" class="number"')
        rows = [
            _html_row(row, 'th scope="row"', 'td class="number"', i in self.totals)
            for i, row in enumerate(self.rows)
        ]
        return (
            f'<div class="scroll"><table class="{kind}"><thead>{head}</thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def show(self) -> None:
        """Print the table on the terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(title=self.title or None)
        for i, title in enumerate(self.head):
            table.add_column(title, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)


def _html_row(cells: Sequence[str], first: str, other: str, total: bool = False) -> str:
    """A row in HTML. first, other: tags, with attributes, of the first cell and of the others."""
    made = []
    for i, cell in enumerate(cells):
        tag, (words, _, small) = other if i else first, cell.partition("\n")
        minus = words.replace("-", "−", 1) if i and words.startswith("-") else words
        rest = f"<br><small>{escape(small)}</small>" if small else ""
        made.append(f"<{tag}>{escape(minus)}{rest}</{tag.split()[0]}>")
    kind = ' class="total"' if total else ""
    return f"<tr{kind}>{''.join(made)}</tr>"


def plain_text(text: str) -> str:
    """Words of a file as one line of Markdown that means nothing but itself."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))


def bits_table(models: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Table:
    """Bits/dim of models by name, each in every convention (fields of `Convention`).

    Columns that no convention fills are left out.
    """
    conventions = [(name, each) for name, rows in models.items() for each in rows]
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
