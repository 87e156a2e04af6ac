"""`dsmooth evaluate classify`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..evaluate.classes import classify
from ..machine import autocast, choose_device
from ..pretrained import load
from ..results import ClassifyResult, MeasuredImages
from ..text import percent
from .options import ClassifyOptions
from .shared import choose_data, request_of_measure


def evaluate_classify(options: ClassifyOptions) -> tuple[Mapping[str, object], ClassifyResult]:
    """Classify and print; what decides the numbers, and the numbers."""
    device = choose_device(options.execution.device)
    models = load(*options.models, device=device).checked()
    if models.smoothed is not None and models.plain is not None:
        raise ValueError("name a pair or a plain model: one of them classifies at a time")
    dataset = choose_data(models, options.dataset).load(options.split, options.limit)
    n = len(dataset)
    with autocast(device, options.execution.precision):
        found = classify(
            models.model,
            dataset,
            n_noise=options.n_noise,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=True,
        )
    result = ClassifyResult(
        data=MeasuredImages(dataset.name, dataset.split, n),
        accuracy=found.accuracy,
        error=found.accuracy_error,
        bits=found.bits,
        bits_given_class=found.bits_given_class,
        bits_of_mixture=found.bits_of_mixture,
        confusion=tuple(map(tuple, found.confusion().tolist())),
        n_noise=None if models.smoothed is None else options.n_noise,
        seed=options.seed,
    )
    rule, draws = "by exact likelihoods", result.n_noise
    if draws is not None:
        rule = f"by importance-weighted bounds of {draws} draw{'s' * (draws > 1)}"
    k = len(result.confusion)
    print(
        f"{percent(result.accuracy, 2, result.error)} of {n:,} images classified correctly, "
        f"{dataset.source}, {dataset.split}"
    )
    print(f"p(label | x) of the true label: {result.bits:.4f} bits ({math.log2(k):.2f} by chance)")
    print(
        f"bits/dim: {result.bits_given_class:.4f} given the class, {result.bits_of_mixture:.4f} by "
        "the mixture of the classes, which the model draws from"
    )
    prior = "by their shares in training" if models.classes.shares else "of equal prior probability"
    print(f"Bayes' rule over {k} classes {prior}, {rule}")
    return request_of_measure(options, dataset, models, result.n_noise), result
