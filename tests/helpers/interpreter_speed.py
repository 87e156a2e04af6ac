"""Most of the time of Triton's interpreter saved: imported by tests for its effect.

What is left out changes no result. Not looked for: overflow of int32, out of reach of tests' sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

_call = InterpretedFunction.__call__


def _call_patched(function: Any, *args: Any, **named: Any) -> Any:
    """Call a device function of ours.

    The interpreter replaces the functions of triton.language for the time of a launch, and once
    more, to no effect but hundreds of look-ups, whenever a kernel calls a function of the same
    modules.
    """
    if function.fn.__module__.startswith("triton."):
        return _call(function, *args, **named)
    return function.rewrite()(*args, **named)


InterpretedFunction.__call__ = _call_patched
_get_np_dtype = interpreter._get_np_dtype
_by_name: dict[str, Any] = {}


def _get_np_dtype_patched(kind: Any) -> Any:
    """The NumPy dtype of a type; the original builds a table of all types at every call."""
    name = kind.scalar.name
    if name not in _by_name:
        _by_name[name] = _get_np_dtype(kind)
    return _by_name[name]


interpreter._get_np_dtype = _get_np_dtype_patched
builder = interpreter.interpreter_builder
builder.options = replace(builder.options, sanitize_overflow=False)
