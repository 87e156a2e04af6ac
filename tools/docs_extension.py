"""Lay out docstrings for the API pages: an item per argument, a paragraph for results and errors.

Docstrings explain arguments in sentences that begin "name: ..."; a page shows them as a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import griffe


class ArgumentLists(griffe.Extension):
    """Rewrites the docstrings of functions and classes."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Load the folder kernels/ as the module dsmooth.kernels, its name when installed."""
        if pkg.name == "dsmooth":
            kernels = loader.load("kernels")
            kernels.parent = pkg
            pkg.set_member("kernels", kernels)

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        itemise(func, (parameter.name for parameter in func.parameters))

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Include the arguments of `__init__`, which the docstring of the class explains."""
        names = [*cls.members]
        if isinstance(init := cls.members.get("__init__"), griffe.Function):
            names += [parameter.name for parameter in init.parameters]
        itemise(cls, names)


def itemise(described: griffe.Function | griffe.Class, names: Iterable[str]) -> None:
    """Turn the sentences about `names` into a list."""
    if described.docstring is None:
        return
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    start = r"(?:^|(?<=[.;]\s)|(?<=\)\s))"
    text = described.docstring.value
    if either:
        items = rf"{start}((?:{either})(?:, (?:{either}))*): "
        text = re.sub(items, r"\n\n- **\1**: ", text, flags=re.MULTILINE)
    text = re.sub(
        r"(?:^|(?<=\.\s))(?=(?:Returns|Raises|Source:) )", "\n\n", text, flags=re.MULTILINE
    )
    described.docstring.value = text.strip()
