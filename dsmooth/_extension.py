"""The package as it is installed: its version, its place, and the native extension `dsmooth._C`.

This is the only import of the extension; where it is missing, the reason is known here.
The record `_build_info.json` is written by setup.py next to the package. A source tree without a
built extension has neither: the message then says what to do.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.2.0"  # setuptools reads it here without importing the package
# The folder that this dsmooth was imported from.
PACKAGE = Path(__file__).resolve().parent


@cache
def build_info() -> dict[str, Any] | None:
    """The record of the build by setup.py, or None in a source tree that was never built."""
    path = PACKAGE / "_build_info.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


@cache
def _load() -> ModuleType | str:
    """The module, or the reason in one sentence why it cannot be had."""
    # torch first: the loader then finds its OpenMP runtime for the extension, which links none.
    import torch

    # A process that is forked later has none of OpenMP's threads. An operation that is shared among
    # several, torch's or the extension's, would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    try:
        import dsmooth._C as module  # type: ignore[import-not-found] # which mypy cannot read

        return module
    except ImportError as error:
        info = build_info()
        if info is None:
            return (
                f"dsmooth was imported from {PACKAGE}, a source tree whose extension was never "
                "built: run from another folder if you did `pip install .`, or run "
                "`pip install -e .`"
            )
        if not info["extension"]:
            return (
                f"dsmooth was installed without its extension ({info['reason']}): "
                "`pip install --no-deps --no-cache-dir --force-reinstall .` in a clone, without "
                "DSMOOTH_EXTENSION=0 and with a C++20 compiler, builds it"
            )
        return f"the extension cannot be loaded ({error}): install again with `pip install .`"


def unavailable_reason() -> str | None:
    """Why the native extension cannot be used, in one sentence; None if it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


warn_once = cache(logging.getLogger("dsmooth").warning)


def extension() -> ModuleType:
    """The module `dsmooth._C`. Raises RuntimeError with the reason if it cannot be had."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def instruction_sets() -> list[str]:
    """Names of the instruction sets built that this CPU has, the best last."""
    loaded = _load()
    return [] if isinstance(loaded, str) else list(loaded.instruction_sets())
