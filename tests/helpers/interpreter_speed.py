"""Most of the time of Triton's interpreter saved: imported by tests for its effect.

What is left out changes no result. Not looked for: overflow of int32, out of reach of tests' sizes.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

# The interpreter replaces the functions of triton.language by its own at every launch, and again at
# every call of a device function, which is hundreds of look-ups. Here they stay replaced.
interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)
InterpretedFunction.__call__ = lambda function, *args, **named: function.rewrite()(*args, **named)
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
