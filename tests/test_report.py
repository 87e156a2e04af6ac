"""report.html: says what results.json holds, for every kind of pair, in one file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from dsmooth.config import Role
from dsmooth.data import load_dataset
from dsmooth.evaluate.figures import curve_png, running_mean, visible
from dsmooth.evaluate.report import advice, number, write_report
from dsmooth.presets import preset
from tests.report_checks import check_self_contained

ROLES: tuple[Role, ...] = ("noisy", "denoiser", "plain")


def made_up_results(name: str = "mnist-quick", **data: Any) -> dict[str, Any]:
    """A results.json as `reproduce` would write it, with numbers that are easy to find again."""
    runs = {}
    for i, role in enumerate(ROLES):
        settings = asdict(preset(name, role))
        settings.pop("data_dir")
        runs[role] = {
            "settings": settings,
            "parameters": 100_001 + i,
            "images": 32_000 + i,
            "passes_over_training_set": 6.4,
            "training_seconds": 320.0,
            "loss": f"bits/dim of {role}",
            "held_out_bits_per_dim": 1.25 + i / 1000,
            "held_out_images": 500,
        }
    likelihood = preset(name, "denoiser").model.likelihood
    pair = {"unit": "bits/dim", "likelihood": likelihood, "value": 1.106, "standard_error": 0.0123}
    pair |= {"noisy": 1.132, "smoothing": -1.047, "denoiser": 1.021, "n_images": 987, "n_noise": 1}
    plain = {"unit": "bits/dim", "likelihood": "discretized", "value": 1.357}
    plain |= {"standard_error": 0.0246, "n_images": 987}
    methods = ("noisy", "two-step", "single-step", "plain")
    return {
        "dsmooth": "0.0.7",
        "name": name,
        "budget_minutes": 8.0,
        "data": {
            "name": "mnist",
            "embedded_subset": True,
            "train_images": 5000,
            "test_images": 1000,
            "image_size": [28, 28],
            "image_channels": 1,
            **data,
        },
        "machine": {
            "processor": "Abacus <IX> & sons",
            "cpu_threads": 2,
            "gpu": None,
            "system": "Linux x86_64",
            "python": "3.11",
            "torch": "2.11",
        },
        "runs": runs,
        "samples": {"seed": 0, "count": 64, "diverged": dict.fromkeys(methods, 0)},
        "bits_per_dim": {"pair": pair, "plain": plain},
    }


def made_up_pictures() -> dict[str, torch.Tensor]:
    """Real digits, shuffled, in the places of the samples."""
    x = load_dataset("mnist", "test").batch(torch.arange(64))
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    pictures = {
        "noisy": x + noise,
        "two-step": x,
        "single-step": x + 0.2 * noise,
        "plain": x.flip(0),
    }
    held_out = {f"held-out-{k}": v[:10] for k, v in pictures.items() if k != "plain"}
    return {**pictures, "held-out": x[:10], **held_out}


def made_up_history() -> list[dict[str, Any]]:
    steps = [
        {"event": "step", "images": 320 * i, "bits_per_dim": 1.2 + 3 * math.exp(-i / 6)}
        for i in range(1, 101)
    ]
    scores = [
        {"event": "evaluation", "images": 4000 * i, "bits_per_dim": 1.22 + 1 / (i + 1) ** 2}
        for i in range(1, 9)
    ]
    return [*steps, *scores]


def write(folder: Path, results: Mapping[str, Any], pictures: dict[str, torch.Tensor]) -> str:
    histories = {role: made_up_history() for role in ROLES}
    write_report(folder / "report.html", results, histories, pictures)
    text = (folder / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    return text


def words(html: str) -> str:
    """What a reader sees, white space collapsed."""
    body = html[html.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_page_says_the_numbers_and_their_conventions(tmp_path: Path) -> None:
    seen = words(write(tmp_path, made_up_results(), made_up_pictures()))
    for part in ("1.132", "−1.047", "1.021", "1.106 ± 0.012", "1.357 ± 0.025", "987 held-out"):
        assert part in seen
    assert "Discrete bound" in seen
    assert "Density bound" not in seen
    assert "Abacus <IX> & sons" in seen
    assert "reproduce --budget 64" in seen
    for title in ("Noisy samples", "Two-step samples", "Single-step samples", "Plain PixelCNN++"):
        assert title in seen


def test_a_continuous_denoiser_is_not_called_discrete(tmp_path: Path) -> None:
    seen = words(write(tmp_path, made_up_results("mnist-paper"), made_up_pictures()))
    assert "Density bound" in seen
    assert "Discrete bound" not in seen
    assert number(1.106 + math.log2(127.5)) in seen
    assert "not comparable" in seen


def test_a_pair_without_baseline_or_single_step_has_a_page(tmp_path: Path) -> None:
    results = made_up_results()
    del results["runs"]["plain"], results["bits_per_dim"]["plain"]
    kept = {k: v for k, v in made_up_pictures().items() if "single" not in k and k != "plain"}
    histories = {role: made_up_history() for role in ("noisy", "denoiser")}
    write_report(tmp_path / "report.html", results, histories, kept)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert "Single-step" not in text
    assert "Plain PixelCNN++" not in text


def test_diverged_samples_are_counted_not_hidden(tmp_path: Path) -> None:
    pictures, results = made_up_pictures(), made_up_results()
    pictures["noisy"][3, 0, 2, 2] = math.inf
    pictures["noisy"][5, 0, 2, 2] = math.nan
    results["samples"]["diverged"]["noisy"] = 2
    assert "2 of 64 diverged" in words(write(tmp_path, results, pictures))
    shown = visible(pictures["noisy"])
    assert shown.isfinite().all()
    assert (shown[[3, 5]] == 0).all()
    rest = [i for i in range(64) if i not in (3, 5)]
    assert shown[rest].equal(pictures["noisy"][rest])


def test_advice_fits_the_data() -> None:
    embedded = " ".join(advice(made_up_results()))
    assert "--data-dir mnist --download" in embedded
    full = " ".join(advice(made_up_results(embedded_subset=False, train_images=60_000)))
    assert "--download" not in full
    assert "0.5 passes" in full
    assert "6.4 passes" in embedded


def test_running_mean_keeps_lines_and_few_points() -> None:
    line = [(i, 2.0 * i) for i in range(301)]
    smooth = running_mean(line)
    assert [i for i, _ in smooth] == list(range(301))
    assert [v for _, v in smooth[3:-3]] == pytest.approx([v for _, v in line[3:-3]])
    assert running_mean([(5, 1.5)]) == [(5, 1.5)]


@pytest.mark.parametrize("entries", [[], made_up_history()[:1], made_up_history()])
def test_curves_draw_from_any_history(entries: list[dict[str, Any]]) -> None:
    light, dark = (curve_png(entries, dark=d) for d in (False, True))
    assert light.startswith(b"\x89PNG")
    assert light != dark
