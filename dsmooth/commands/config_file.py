"""Options in a JSON file, as --config reads them and --print-config prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import msgspec
import tyro

from ..files import read_json
from .options import Train

# They stand on the command line alone.
OWN = ("config", "print_config")


def read_options(kind: type, path: Path, prog: str) -> Any:
    """Options of the verb `prog` from a file; tyro's MISSING for what must be named."""
    values, used = read_json(path), set[str]()
    if kind is Train:
        missing = [key for key in ("role", "model") if key not in values]
        if missing:
            raise ValueError(
                f"{path} is not that of a training run: it has no {' and no '.join(missing)}"
            )
        values = {k: v for k, v in values.items() if k not in ("dsmooth", "height_and_width")}
    try:
        options = _filled(kind, values, used)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    unknown = sorted(values.keys() - used)
    if unknown:
        raise ValueError(f"{path}: {prog} has no option {', '.join(unknown)}")
    return options


def _filled(kind: type, values: Mapping[str, Any], used: set[str]) -> Any:
    """Options of `kind` from `values`; the names of those that were found come into `used`."""
    given: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        name, hint = field.name, hints[field.name]
        if is_dataclass(hint) and isinstance(values.get(name), dict):
            inner: set[str] = set()
            given[name] = _filled(cast(type, hint), values[name], inner)
            used.add(name)
            unknown = sorted(values[name].keys() - inner)
            if unknown:
                raise ValueError(f"{name} has no option {', '.join(unknown)}")
        elif is_dataclass(hint):
            given[name] = _filled(cast(type, hint), values, used)
        elif name in values and name not in OWN:
            used.add(name)
            try:
                given[name] = msgspec.convert(values[name], hint, dec_hook=lambda _, x: Path(x))
            except msgspec.ValidationError as error:
                raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
        elif field.default is MISSING and field.default_factory is MISSING:
            given[name] = tyro.MISSING
    return kind(**given)


def as_json(options: Any) -> dict[str, Any]:
    """The options of a verb as `read_options` reads them; of `train` the settings alone."""
    if isinstance(options, Train):
        return asdict(replace(options.settings, role=options.role))
    shown: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            shown |= as_json(value)
        elif field.name not in OWN:
            shown[field.name] = value
    return shown
