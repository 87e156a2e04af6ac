"""Growth with training: curves of the bound, and the comparison at equal cost."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dsmooth.report.growth import (
    at,
    equal_cost,
    growth_section,
    held_out_curves,
)
from dsmooth.report.html import Row

pytestmark = pytest.mark.quick

IMAGES = [1000 * 2**i for i in range(6)]
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * 0.25)


def history(first: float, gain: float, images: list[int] = IMAGES) -> list[dict[str, Any]]:
    """A log whose score falls by `gain` with every doubling of the images."""
    scores = [
        {"event": "evaluation", "images": n, "bits_per_dim": first - gain * math.log2(n / 1000)}
        for n in images
    ]
    return [{"event": "start", "images": 0}, *scores, {"event": "end", "images": images[-1]}]


def results(likelihood: str = "discretized", smoothing: str = "gaussian") -> dict[str, Any]:
    def settings(likelihood: str) -> dict[str, Any]:
        return {
            "settings": {
                "model": {"likelihood": likelihood},
                "smoothing": smoothing,
                "scale": 0.5,
            }
        }

    runs = {"noisy": "gaussian", "denoiser": likelihood, "plain": "discretized"}
    return {"runs": {role: settings(kind) for role, kind in runs.items()}}


# The denoiser was scored at half of the noisy model's numbers of images.
HISTORIES = {
    "noisy": history(1.2, 0.01),
    "denoiser": history(1.1, 0.04, IMAGES[::2]),
    "plain": history(1.15, 0.03),
}


def test_the_bound_is_both_losses_less_the_entropy() -> None:
    curves = held_out_curves(results(), HISTORIES)
    assert curves is not None
    assert [n for n, _ in curves["pair"]] == IMAGES[::2]
    assert [v for _, v in curves["pair"]] == pytest.approx(
        [2.3 - ENTROPY - 0.05 * i for i in (0, 2, 4)]
    )
    assert len(curves["plain"]) == len(IMAGES)


def test_curves_between_their_points() -> None:
    curve = [(1000, 1.0), (4000, 0.9)]
    assert at(curve, 2000) == pytest.approx(0.95)
    assert at(curve, 500) == 1.0
    assert at(curve, 9000) == 0.9


def test_equal_cost_gives_the_pair_half_the_images() -> None:
    curves = {"pair": [(1000, 1.0), (16000, 0.8)], "plain": [(1000, 1.1), (8000, 0.95)]}
    (table,) = equal_cost(curves)
    assert [number for _, number in table.rows] == ["0.950", "0.850", "0.900"]
    words = " ".join(words for words, _ in table.rows)
    assert "8,000 images" in words
    assert "4,000 for each network" in words


def test_the_section_draws_both() -> None:
    row, *_ = growth_section(results(), HISTORIES)
    assert isinstance(row, Row)
    assert len(row.figures) == 1


@pytest.mark.parametrize(
    ("of", "histories"),
    [
        (results(), {role: HISTORIES[role] for role in ("noisy", "denoiser")}),
        (results("continuous"), HISTORIES),
        (results(smoothing="laplace"), HISTORIES),
        (results(), {**HISTORIES, "plain": [{"event": "start", "images": 0}]}),
    ],
)
def test_no_section_where_the_numbers_do_not_compare(of: Any, histories: Any) -> None:
    assert growth_section(of, histories) == []
