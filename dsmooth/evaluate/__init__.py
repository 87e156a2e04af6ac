"""Measures: bits/dim, distances and scores of samples, linear probes, receptive fields."""

from .classes import classify as classify
from .clusters import cluster as cluster
from .comparison import compare_images as compare_images
from .features import extract_features as extract_features
from .features import make_extractor as make_extractor
from .frechet import frechet_distance as frechet_distance
from .likelihood import bits_per_dim as bits_per_dim
from .likelihood import conventions as conventions
from .likelihood import score_pair as score_pair
from .likelihood import score_plain as score_plain
from .probe import probe_pair as probe_pair
from .receptive_field import receptive_fields as receptive_fields
