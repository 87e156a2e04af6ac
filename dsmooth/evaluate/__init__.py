"""Measures: bits/dim, distances and scores of samples, linear probes, receptive fields."""

from .classes import classify
from .clusters import cluster
from .comparison import compare_images
from .features import extract_features, make_extractor
from .frechet import frechet_distance
from .likelihood import bits_per_dim, conventions, score_pair, score_plain
from .probe import probe_pair
from .receptive_field import receptive_fields

__all__ = [
    "bits_per_dim",
    "classify",
    "cluster",
    "compare_images",
    "conventions",
    "extract_features",
    "frechet_distance",
    "make_extractor",
    "probe_pair",
    "receptive_fields",
    "score_pair",
    "score_plain",
]
