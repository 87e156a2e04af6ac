"""Measures: bits/dim, distances and scores of samples, linear probes, receptive fields.

A name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsmooth.evaluate.classes import bits_by_class, classify, frechet_by_class
    from dsmooth.evaluate.comparison import compare_images
    from dsmooth.evaluate.features import extract_features, make_extractor
    from dsmooth.evaluate.frechet import frechet_distance
    from dsmooth.evaluate.likelihood import (
        conventions,
        evaluate_bits_per_dim,
        score_pair,
        score_plain,
    )
    from dsmooth.evaluate.probe import probe_pair
    from dsmooth.evaluate.receptive_field import receptive_fields
    from dsmooth.evaluate.scores import inception_score, kernel_distance

__all__ = [
    "bits_by_class",
    "classify",
    "compare_images",
    "conventions",
    "evaluate_bits_per_dim",
    "extract_features",
    "frechet_by_class",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "make_extractor",
    "probe_pair",
    "receptive_fields",
    "score_pair",
    "score_plain",
]

_HOMES = {
    "bits_by_class": "classes",
    "classify": "classes",
    "compare_images": "comparison",
    "conventions": "likelihood",
    "evaluate_bits_per_dim": "likelihood",
    "extract_features": "features",
    "frechet_by_class": "classes",
    "frechet_distance": "frechet",
    "inception_score": "scores",
    "kernel_distance": "scores",
    "make_extractor": "features",
    "probe_pair": "probe",
    "receptive_fields": "receptive_field",
    "score_pair": "likelihood",
    "score_plain": "likelihood",
}
_MODULES = ("classes", "comparison", "features", "frechet", "likelihood", "probe", "scores")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
