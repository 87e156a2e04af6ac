"""Text for people: numbers with errors, tables, text of unknown origin made safe, templates."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

# Control characters except tab and newline, marks that change the direction of writing, and halves
# of surrogate pairs, which have no UTF-8.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    r"""Text of any file for a terminal or a page: what would act on it becomes \xNN or \uNNNN."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def plain_text(text: str) -> str:
    """Text of a file as one line of Markdown without any markup."""
    line = escape_control(" ".join(text.split()))
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", escape(line, quote=False))


def decimals(value: float | None, digits: int = 4, error: float | None = None) -> str:
    """A number with its standard error, if there is one; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def percent(share: float, digits: int = 1, error: float | None = None) -> str:
    """A share, and its standard error if there is one, in per cent."""
    return f"{decimals(100 * share, digits, None if error is None else 100 * error)} %"


def significant(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, without an exponent if large: 12,800."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10**digits else f"{rounded:.{digits}g}"


@dataclass(frozen=True)
class Table:
    """Rows of text cells, as Markdown and on the terminal; a report shows them as HTML.

    The first column holds words, the others numbers. Further lines of a cell are small print,
    which Markdown leaves out.
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


def render(template: Path, **values: object) -> str:
    """The text of a Jinja template; values are escaped in HTML. Missing values are errors."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(template.parent),
        extensions=["jinja2.ext.do"],
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON is YAML, and quotes text that would have another meaning.
    pages.filters |= {
        "decimals": decimals,
        "percent": percent,
        "thousands": "{:,}".format,
        "json": json.dumps,
        "plain": plain_text,
    }
    return pages.get_template(template.name).render(values)
