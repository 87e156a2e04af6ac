"""Growth with training: bits/dim against images seen, the pair beside the plain model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..tables import Table, decimals
from .html import Row, Section, plot_figure
from .plots import growth_png

Curve = Sequence[tuple[int, float]]  # (images seen, bits/dim), in order


def growth_section(
    results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Section:
    """A figure of the held-out bits/dim of the pair and the plain model."""
    curves = held_out_curves(results, histories)
    if curves is None:
        return []
    text = (
        "Averaged weights on held-out images, both axes logarithmic. The pair's bound is the sum "
        "of both networks' losses at the same number of images less the entropy of the noise."
    )
    picture = plot_figure(
        partial(growth_png, curves),
        f"Bits/dim against images seen. {text}",
        "Bits/dim against images",
        text,
    )
    return [Row([picture]), *equal_cost(curves)]


def held_out_curves(
    results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Curve] | None:
    """The pair's bound and the plain model's bits/dim; None without three runs of such numbers.

    Both are of the probability of bytes, so they may be compared.
    """
    runs = results["runs"]
    if not {"noisy", "denoiser", "plain"} <= histories.keys():
        return None
    noisy, denoiser, plain = (evaluations(histories[r]) for r in ("noisy", "denoiser", "plain"))
    settings = runs["noisy"]["settings"]
    likelihoods = {runs[r]["settings"]["model"]["likelihood"] for r in ("denoiser", "plain")}
    if settings["smoothing"] != "gaussian" or likelihoods != {"discretized"}:
        return None
    entropy = 0.5 * math.log2(2 * math.pi * math.e * settings["scale"] ** 2)
    last = min((curve[-1][0] if curve else 0) for curve in (noisy, denoiser))
    pair = [
        (n, at(noisy, n) + value - entropy)
        for n, value in denoiser
        if noisy and noisy[0][0] <= n <= last
    ]
    return {"pair": pair, "plain": plain} if len(pair) > 1 and len(plain) > 1 else None


def evaluations(entries: Sequence[Mapping[str, Any]]) -> Curve:
    """(images seen, held-out bits/dim) of a log."""
    return [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "evaluation"]


def at(curve: Curve, images: float) -> float:
    """The curve at a number of images inside it, by a line in the logarithm of the images."""
    for (n0, v0), (n1, v1) in itertools.pairwise(curve):
        if n0 <= images <= n1:
            share = math.log(images / n0) / math.log(n1 / n0)
            return v0 + share * (v1 - v0)
    return curve[0][1] if images < curve[0][0] else curve[-1][1]


def equal_cost(curves: Mapping[str, Curve]) -> list[Table]:
    """Plain model, and pair at equal images and at equal compute: a pair trains two networks."""
    pair, plain = curves["pair"], curves["plain"]
    images = min(pair[-1][0], plain[-1][0])
    if images / 2 < max(pair[0][0], plain[0][0]):
        return []
    numbers = (decimals(v, 3) for v in (at(plain, images), at(pair, images), at(pair, images / 2)))
    rows = zip(
        (
            f"Plain model\n{images:,} images",
            f"Pair, equal images\n{images:,} for each network",
            f"Pair, equal compute\n{images // 2:,} for each network, halfway through a longer run",
        ),
        numbers,
        strict=True,
    )
    return [Table(["Training", "held-out bits/dim"], list(rows), totals=(0,))]
