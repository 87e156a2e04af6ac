"""Measures: bits/dim, distances and scores of samples, linear probes, receptive fields.

A name is imported when it is first used.
"""

# ruff: noqa: F401 - the names of __all__
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classes import bits_by_class, classify, frechet_by_class
    from .comparison import compare_images
    from .features import extract_features, make_extractor
    from .frechet import frechet_distance
    from .likelihood import conventions, evaluate_bits_per_dim, score_pair, score_plain
    from .probe import probe_pair
    from .receptive_field import receptive_fields
    from .scores import inception_score, kernel_distance

_MODULES = {
    "classes": ("bits_by_class", "classify", "frechet_by_class"),
    "comparison": ("compare_images",),
    "features": ("extract_features", "make_extractor"),
    "frechet": ("frechet_distance",),
    "likelihood": ("conventions", "evaluate_bits_per_dim", "score_pair", "score_plain"),
    "probe": ("probe_pair",),
    "receptive_field": ("receptive_fields",),
    "scores": ("inception_score", "kernel_distance"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES])
