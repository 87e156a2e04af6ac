"""Arguments and fields of settings: their checks and errors. Only tensors need torch."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache, partial, wraps
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# The text of an argument, and of a value to give it (None: any).
Spell = Callable[[str, object], str]


def in_python(name: str, value: object = None) -> str:
    """An argument as Python has it, in backquotes."""
    return f"`{name}`" if value is None else f"`{name}={value}`"


class SettingError(ValueError):
    """An argument that does not fit.

    arguments: its name in Python, or the names of several that contradict each other; () where it
    is about none. remedy: arguments that help, with a value or None for any. The text is
    "`argument` message `remedy=value`"; `text` spells the arguments as options of a command.
    """

    def __init__(self, arguments: str | Sequence[str], message: str, **remedy: object) -> None:
        self.arguments = (arguments,) if isinstance(arguments, str) else tuple(arguments)
        self.message, self.remedy = message, remedy
        super().__init__(self.text(in_python))

    def __reduce__(self) -> tuple[Callable[[], SettingError], tuple[()]]:
        """As another process gets it, by pickle."""
        return partial(SettingError, self.arguments, self.message, **self.remedy), ()

    def text(self, spell: Spell) -> str:
        """The whole message, its arguments as `spell` writes them."""
        subject = " and ".join(spell(name, None) for name in self.arguments)
        remedy = " or ".join(spell(name, value) for name, value in self.remedy.items())
        return " ".join(filter(None, (subject, self.message, remedy)))


# The value of a setting, as JSON has it.
Setting = bool | int | float | str | list[bool | int | float | str] | None
MANY = 8  # names that an error lists, all of them
_TYPES = {int: "a whole number", float: "a number", str: "text"}
_TYPES |= {bool: "True or False", NoneType: "None"}


def check_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise SettingError, with the nearest of many, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    names = [*map(str, allowed)]
    few = names if len(names) <= MANY else get_close_matches(str(value), names, 5) or names[:5]
    such = "" if few is names else f"{len(names)} names, such as "
    raise SettingError(name, f"must be one of {such}{', '.join(few)}, got {value!r}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The question whether some of `names` was meant, if they are similar; else ""."""
    near = get_close_matches(name, [*names], cutoff=0.62)
    return f": did you mean {' or '.join(near)}?" if near else ""


def plain_values(kind: type[T]) -> type[T]:
    """A dataclass that is made with values as JSON has them: numbers and arrays of numpy, iterables
    and paths become numbers, tuples and text."""
    make = kind.__init__

    @wraps(make)
    def make_plain(self: T, *values: Any, **named: Any) -> None:
        make(self, *map(_plain, values), **{name: _plain(value) for name, value in named.items()})

    kind.__init__ = make_plain  # type: ignore[assignment]
    return kind


def check(settings: object) -> None:
    """Raise SettingError for a field that its annotation refuses."""
    # For mypy a type is not hashable, as its __hash__ has another signature.
    for name, hint in types_of(type(settings)).items():  # type: ignore[arg-type]
        value = getattr(settings, name)
        if expected := _expected(value, hint):
            raise SettingError(name, f"must be {expected}, got {value!r}")


@cache
def types_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass, evaluated once: that takes a millisecond."""
    return get_type_hints(kind, include_extras=True)


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    whole = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    return value if whole else tuple(map(_plain, value))


def _expected(value: object, hint: object) -> str:
    """The words for what a field must hold instead of a value; "" if it may hold it."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(kind, type) and is_dataclass(kind):  # it has checked itself
        return "" if isinstance(value, kind) else f"a {kind.__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    try:
        msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError:
        return _allowed(hint)
    most = _bounds(hint)["<="] if kind is int else None
    return "" if most is None or value <= most else _allowed(hint)  # type: ignore[operator]


def _bounds(hint: Any) -> dict[str, float | None]:
    """The bounds of a type; extra: those that msgspec cannot check, as they do not fit 64 bits."""
    metas = (meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    meta = next(metas, msgspec.Meta())
    bounds = {">=": meta.ge, ">": meta.gt, "<=": meta.le, "<": meta.lt}
    return {**bounds, "with length >=": meta.min_length, **(meta.extra or {})}


def _allowed(hint: Any) -> str:
    """The values of a type, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(inner)}" if len(inner) > 1 else f'"{inner[0]}"'
    if origin is tuple and not inner:
        return "()"
    if origin is tuple:
        length = "" if inner[-1] is Ellipsis else f" of length {len(inner)}"
        return f"a list{length}, each item {_allowed(inner[0])}"
    if origin is Annotated:
        bounds = [f"{sign} {bound}" for sign, bound in _bounds(hint).items() if bound is not None]
        return " ".join(filter(None, (_allowed(inner[0]), " and ".join(bounds))))
    return " or ".join(map(_allowed, inner)) if inner else _TYPES.get(hint, f"a {hint.__name__}")


def check_number(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise SettingError for what is not a whole number within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        allowed = "be a whole number"
    elif value.__index__() < least or (most is not None and value.__index__() > most):
        allowed = f"be at least {least}" if most is None else f"lie in {least} .. {most}"
    else:
        return
    raise SettingError(name, f"must {allowed}, got {value!r}")


def _of_several(check: Callable[..., None]) -> Callable[..., None]:
    """A check of several arguments: NAME=(value, what the check of one takes after it)."""

    def check_all(**arguments: tuple[Any, ...]) -> None:
        for name, values in arguments.items():
            check(name, *values)

    return check_all


check_choices, check_numbers = _of_several(check_one_of), _of_several(check_number)


def check_floating(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is a floating-point tensor."""
    from torch import Tensor

    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")


def check_tensor(
    name: str,
    tensor: object,
    shape: Sequence[int | str | tuple[int, ...]],
    device: torch.device | None = None,
    dtypes: Collection[torch.dtype] = (),
    *,
    floating: bool = False,
) -> None:
    """Raise TypeError unless `tensor` is a tensor, ValueError for a wrong shape, device or dtype.

    shape: numbers, tuples of them to choose from, or letters for dimensions of any size. dtypes:
    the allowed ones; empty for any.
    floating: whether it must be floating point, else TypeError.
    """
    from torch import Tensor

    if not isinstance(tensor, Tensor) or (floating and not tensor.is_floating_point()):
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a {'floating-point ' * floating}tensor, got {got}")
    allowed = [n if isinstance(n, str | tuple) else (n,) for n in shape]
    pairs = zip(allowed, tensor.shape, strict=False)
    if tensor.ndim != len(shape) or any(m not in n for n, m in pairs if not isinstance(n, str)):
        sizes = (n if isinstance(n, str) else " or ".join(map(str, n)) for n in allowed)
        words = str(tuple(sizes)).replace("'", "")
        raise ValueError(f"{name} must have shape {words}, got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if dtypes and tensor.dtype not in dtypes:
        got, *names = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *dtypes))
        raise ValueError(f"{name} must be {' or '.join(names)}, got {got}")


def difference(stored: object, current: object) -> str:
    """The first field that differs between two nested dictionaries, in words; "" for none."""
    old, new = flatten(stored), flatten(current)
    changed = (key for key in {**new, **old} if old.get(key) != new.get(key))
    return next((f"its {key} is {_short(old, key)}, not {_short(new, key)}" for key in changed), "")


def _short(values: Mapping[str, object], key: str) -> str:
    """A value for a message; a long one, such as a digest, without its middle."""
    text = str(value := values.get(key))
    return text if len(text) < 64 else reprlib.repr(value)


def flatten(value: Any, name: str = "") -> dict[str, Setting]:
    """Nested dictionaries as one, with dotted keys; tuples as lists, as JSON has them."""
    if not isinstance(value, dict):
        return {name: list(value) if isinstance(value, tuple) else value}
    parts = [flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
