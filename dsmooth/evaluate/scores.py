"""Scores beside the Fréchet distance, by torch-fidelity: kernel distance, Inception score,
precision and recall."""

from __future__ import annotations

from torch import Tensor

from ..data import epoch_order
from .features import Features

# Settings of torch-fidelity and of the authors, for as many images.
SUBSET_SIZE, SPLITS, NEIGHBOURS = 1000, 10, 3


def has_fidelity() -> bool:
    """Whether torch-fidelity, the extra "fid", is there."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        return False
    return True


def fidelity_scores(samples: Features, real: Tensor | None) -> dict[str, float]:
    """Scores of images by their features, and by their class logits if they have some.

    real: features (M, D) of real images, None if these are not known. Needs torch-fidelity. The
    result has, as far as they can be had,

    kernel_distance, kernel_distance_deviation: squared maximum mean discrepancy under the kernel
    (x'y / D + 1)^3, mean and standard deviation over 100 subsets of 1,000 images, or of all if
    there are fewer (Binkowski et al., ICLR 2018).
    precision, recall: fractions of the samples near real images, and of real images near samples.
    An image is near a set if it is as near to one of its images as that one's third-nearest
    neighbour in the set (Kynkäänniemi et al., NeurIPS 2019). At most as many real images as samples
    are taken, in a fixed random order; there must be four.
    inception_score, inception_score_deviation: exp E[KL(p(y | x) || p(y))] over the classes y, mean
    and standard deviation over ten parts (Salimans et al., 2016).
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    scores: dict[str, float] = {}
    if real is not None:
        x, y = samples.features.double(), real.double()
        size = min(SUBSET_SIZE, len(x), len(y))
        kernel = kid_features_to_metric(x, y, kid_subset_size=size, verbose=False)
        scores["kernel_distance"] = kernel["kernel_inception_distance_mean"]
        scores["kernel_distance_deviation"] = kernel["kernel_inception_distance_std"]
        if size > NEIGHBOURS:
            y = y[epoch_order(len(y), 0, 0)[: len(x)]]
            # 1,000 rows of a matrix of distances at a time: of 50,000 columns that is 0.4 GB.
            near = prc_features_to_metric(
                x, y, prc_batch_size=1000, save_cpu_ram=True, verbose=False
            )
            scores |= {name: near[name] for name in ("precision", "recall")}
    if samples.logits is not None:
        score = isc_features_to_metric(samples.logits, splits=min(SPLITS, len(samples.logits)))
        scores["inception_score"] = score["inception_score_mean"]
        scores["inception_score_deviation"] = score["inception_score_std"]
    return scores
