"""The tables of all settings in docs/api/training.md; `python tests/helpers/settings_table.py`
writes them."""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsmooth.config import ModelConfig, TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "api" / "training.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def texts_of(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass and of its bases."""
    texts = {}
    for base in kind.__mro__[:-1]:
        (body,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(body, ast.ClassDef)
        for line, text in pairwise(body.body):
            if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(line.target)] = " ".join(ast.literal_eval(text.value).split())
    return texts


def table_of(kind: Any) -> str:
    """A row for each field: its name, its default and its text."""
    texts = texts_of(kind)
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{field.default}`"
        rows.append(
            f"| `{field.name}` | {default} | {texts[field.name].replace('|', chr(92) + '|')} |"
        )
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with the tables between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    tables = (
        f"{table_of(TrainConfig)}\n\nThe network, `TrainConfig.model`:\n\n{table_of(ModelConfig)}"
    )
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
