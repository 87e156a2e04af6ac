"""Growth with training: bits/dim against images seen, the pair beside the plain model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Curve = Sequence[tuple[int, float]]  # (images seen, bits/dim), in order


def held_out_curves(
    runs: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Curve] | None:
    """The pair's bound and the plain model's bits/dim; None without three runs of such numbers.

    Both are of the probability of bytes, so they may be compared.
    """
    if not {"noisy", "denoiser", "plain"} <= histories.keys():
        return None
    settings = runs["noisy"]["settings"]
    likelihoods = {runs[r]["settings"]["model"]["likelihood"] for r in ("denoiser", "plain")}
    if settings["smoothing"] != "gaussian" or likelihoods != {"discretized"}:
        return None
    noisy, denoiser, plain = (
        [(e["images"], e["bits_per_dim"]) for e in histories[role] if e["event"] == "evaluation"]
        for role in ("noisy", "denoiser", "plain")
    )
    entropy = 0.5 * math.log2(2 * math.pi * math.e * settings["scale"] ** 2)
    pair = [
        (n, at(noisy, n) + value - entropy)
        for n, value in denoiser
        if noisy and noisy[0][0] <= n <= noisy[-1][0]
    ]
    return {"pair": pair, "plain": plain} if len(pair) > 1 and len(plain) > 1 else None


def at(curve: Curve, images: float) -> float:
    """The curve at a number of images inside it, by a line in the logarithm of the images."""
    seen, values = zip(*curve, strict=True)
    return float(np.interp(math.log(images), np.log(seen), values))


def equal_cost(curves: Mapping[str, Curve]) -> dict[str, float] | None:
    """Plain model, and pair at equal images and at equal compute: a pair trains two networks."""
    pair, plain = curves["pair"], curves["plain"]
    images = min(pair[-1][0], plain[-1][0])
    if images / 2 < max(pair[0][0], plain[0][0]):
        return None
    return {
        "images": images,
        "plain": at(plain, images),
        "equal_images": at(pair, images),
        "equal_compute": at(pair, images / 2),
    }
