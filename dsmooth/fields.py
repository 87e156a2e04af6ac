"""Arguments and fields of settings: their checks, their errors, and reading them from JSON."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import (
    Any,
    Literal,
    SupportsFloat,
    SupportsIndex,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from .tables import shown

T = TypeVar("T")
# A JSON object, as a file holds it.
Json = dict[str, Any]


def check_one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}")


def make_plain(settings: Any) -> None:
    """Make the fields of JSON's kinds: numbers and arrays of numpy, iterables, and paths.

    bool fields accept 0 and 1, float fields accept bools.
    """
    hints = _hints(settings.__class__)
    for each in fields(settings):
        value, hint = _plain(getattr(settings, each.name)), hints[each.name]
        if hint is bool and value in (0, 1):
            value = bool(value)
        elif isinstance(value, bool) and float in (hint, *get_args(hint)):
            value = float(value)
        object.__setattr__(settings, each.name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    whole = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    return value if whole else tuple(map(_plain, value))


_hints = cache(get_type_hints)


def check_choices(settings: Any) -> None:
    """Raise ValueError for a field that has none of the values that its type lists."""
    for name, hint in _hints(settings.__class__).items():
        if get_origin(hint) is Literal:
            check_one_of(name, getattr(settings, name), get_args(hint))


def check_types(settings: Any) -> None:
    """Raise ValueError for a field of a wrong type. Call it after checks whose errors say more."""
    for name, hint in _hints(settings.__class__).items():
        value = getattr(settings, name)
        if isinstance(hint, type) and is_dataclass(hint):  # one that is there has checked itself
            if not isinstance(value, hint):
                raise ValueError(f"`{name}` must be a {hint.__name__}, got {value!r}")
            continue
        try:
            msgspec.convert(value, hint, strict=True)
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "").replace("array", "a list").replace("null", "None")
            raise ValueError(f"`{name}` cannot be {value!r}: {reason}") from None


def _values_of(settings: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of fields, without those that are None and may be."""
    hints = _hints(settings.__class__)
    for name in names:
        value = getattr(settings, name)
        if value is not None or type(None) not in get_args(hints[name]):
            yield name, value


def check_whole(
    settings: Any, names: Iterable[str], least: int | None = None, most: int | None = None
) -> None:
    """Raise ValueError for a field that is no whole number within bounds, unless it may be None."""
    for name, value in _values_of(settings, names):
        check_number(name, value, least, most)


def check_number(name: str, value: Any, least: int | None = 1, most: int | None = None) -> None:
    """Raise ValueError for what is no whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}")
    number = value.__index__()
    if (least is not None and number < least) or (most is not None and number > most):
        allowed = f"be at least {least}" if most is None else f"lie in {least} .. {most}"
        raise ValueError(f"`{name}` must {allowed}, got {value}")


# Intervals that have a word.
_INTERVALS = {"(0, inf)": "be positive", "[0, inf)": "not be negative", "(-inf, inf)": "be finite"}


def check_interval(settings: Any, names: Iterable[str], interval: str) -> None:
    """Raise ValueError for a field that is no number in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * ("[" in interval) + [high] * ("]" in interval)
    for name, value in _values_of(settings, names):
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
        if not (low < number < high or number in ends):
            allowed = _INTERVALS.get(interval, f"lie in {interval}")
            raise ValueError(f"`{name}` must {allowed}, got {value!r}")


def structure(values: Any, kind: type[T]) -> T:
    """The dataclass from what `asdict` or JSON gave, strictly; ValueError names the field."""
    try:
        made = msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.strip("`.")
        raise ValueError(shown(f"{field}: {reason}" if field else reason)) from None
    known = flatten(asdict(made))  # type: ignore[call-overload]  # typing has no bound "a dataclass"
    unknown = [name for name in flatten(values) if name not in known]
    if unknown:
        raise ValueError(shown(f"{kind.__name__} has no field {', '.join(sorted(unknown))}"))
    return made


def difference(theirs: Any, mine: Any) -> str:
    """The first field that differs between two nested dictionaries, in words; "" for none."""
    old, new = flatten(theirs), flatten(mine)
    changed = (key for key in {**new, **old} if old.get(key) != new.get(key))
    return next((f"its {key} is {_short(old, key)}, not {_short(new, key)}" for key in changed), "")


def _short(values: Json, key: str) -> str:
    """A value for a message; a long one, such as a digest, without its middle."""
    text = str(value := values.get(key))
    return text if len(text) < 64 else reprlib.repr(value)


def flatten(value: Any, name: str = "") -> Json:
    """Nested dictionaries as one, with dotted keys; tuples as lists, as JSON has them."""
    if not isinstance(value, dict):
        return {name: list(value) if isinstance(value, tuple) else value}
    parts = [flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
