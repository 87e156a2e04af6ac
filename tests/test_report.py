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

from dsmooth.config import ProbeSettings, Role
from dsmooth.evaluate.probe import BLOCKS, PIXELS
from dsmooth.evaluate.receptive_field import receptive_fields
from dsmooth.pictures import visible
from dsmooth.presets import preset
from dsmooth.report.growth import at, equal_cost, held_out_curves
from dsmooth.report.page import advice, write_report
from dsmooth.report.plots import curve_png, running_mean
from dsmooth.reproduce.results import card_numbers
from dsmooth.tables import Table
from tests.helpers.report_checks import check_self_contained

METHODS = ("noisy", "two-step", "single-step", "plain")


def made_up_results(preset_name: str = "mnist-quick", **data: Any) -> dict[str, Any]:
    """A results.json as `reproduce` would write it, with numbers that are easy to find again."""
    roles: tuple[Role, ...] = ("noisy", "denoiser", "plain")
    runs = {
        role: {
            "settings": asdict(preset(preset_name, role)),
            "parameters": 100_001 + i,
            "images": 32_000 + i,
            "passes_over_training_set": 6.4,
            "training_seconds": 320.0,
            "loss": f"bits/dim of {role}",
            "held_out_bits_per_dim": 1.25 + i / 1000,
            "held_out_images": 500,
            "notes": [f"the decay of {role} was changed"],
        }
        for i, role in enumerate(roles)
    }
    numbers = {"repeat_error": None, "comparable": True, "meaning": "a < b"}
    bound = {"name": "discrete bound", "value": 1.106, "standard_error": 0.0123}
    exact = {"name": "discrete", "value": 1.357, "standard_error": 0.0246, "equation_4": None}
    pair = {
        **bound,
        "likelihood": preset(preset_name, "denoiser").model.likelihood,
        "noisy": 1.132,
        "smoothing": -1.047,
        "denoiser": 1.021,
        "n_images": 987,
        "n_noise": 1,
        "conventions": [{**numbers, **bound, "equation_4": 1.8273}],
        "paper_readings": [2.99, -4.01],
    }
    distances: dict[str, Any] = {"real": {"value": 0.321, "n_images": 900}}
    for i, name in enumerate(METHODS[1:]):
        sizes = {"n_images": 991 + i, "left_out": i, "warnings": []}
        distances[name] = {"value": 3.125 + i, "error": 0.25, "black": 0.807, **sizes}
    distances["plain"]["warnings"] = ["993 samples are fewer than the 1,024 features"]
    heights = {"noisy": 0.913, "denoiser": 0.887, "untrained-noisy": 0.8, "untrained-denoiser": 0.7}
    accuracy: dict[str, Any] = {PIXELS: {PIXELS: {"accuracy": 0.811, "standard_error": 0.01}}}
    for name, height in heights.items():
        scores = {b: height - i / 100 for i, b in enumerate(BLOCKS)}
        accuracy[name] = {b: {"accuracy": a, "standard_error": 0.01} for b, a in scores.items()}
    return {
        "dsmooth": "0.0.7",
        "name": preset_name,
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
            "processes": 1,
            "cpu_threads": 2,
            "gpu": None,
            "system": "Linux x86_64",
            "python": "3.11",
            "torch": "2.11",
        },
        "runs": runs,
        "samples": {"seed": 0, "diverged": dict.fromkeys(METHODS, 0)},
        "bits_per_dim": {
            "pair": pair,
            "plain": {"conventions": [{**numbers, **exact}]},
            "pair_less": {"plain": {"value": -0.0124, "standard_error": 0.0006, "n_images": 987}},
        },
        "frechet": {
            "name": "Fréchet distance on mnist-classifier",
            "extractor": {
                "name": "mnist-classifier",
                "sha256": "0123456789abcdef01",
                "resize": "-",
            },
            "reference": {"split": "train", "n_images": 5000},
            "distances": distances,
        },
        "probes": {
            "asked": asdict(ProbeSettings(train_images=2345, test_images=1000)),
            "accuracy": accuracy,
        },
        "receptive_field": receptive_fields(),
    }


def made_up_pictures() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(METHODS, 64) | {f"held-out-{name}": 10 for name in METHODS[:3]}
    shapes["held-out"] = 10
    return {k: 2 * torch.rand(n, 1, 8, 8, generator=generator) - 1 for k, n in shapes.items()}


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


def read(
    folder: Path,
    results: Mapping[str, Any],
    pictures: dict[str, torch.Tensor] | None = None,
    histories: Mapping[str, Any] | None = None,
) -> str:
    """The words of a report, white space collapsed."""
    histories = histories or {role: made_up_history() for role in results["runs"]}
    pictures = pictures or made_up_pictures()
    commands = ["dsmooth reproduce --budget 64"]
    write_report(folder / "report.html", results, histories, pictures, commands)
    text = (folder / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    body = text[text.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The words of the report of `made_up_results`."""
    return read(tmp_path_factory.mktemp("page"), made_up_results())


def test_the_page_says_what_was_measured(page: str) -> None:
    for part in (
        "pair: discrete bound * a < b",
        "1.1060 0.0123 1.8273",
        "1.3570 0.0246 –",
        "less the plain model's bits/dim is -0.0124 ± 0.0006, paired over the same 987 images",
        "3.125 ± 0.250 80.7 %",
        "1.1320 (noisy model), -1.0470 (the noise, known exactly) and 1.0210 (denoiser)",
        "discrete bound is 1.106 ± 0.012 bits/dim on 987 held-out",
        "reproduce --budget 64",
        "Noisy model: 100,001 parameters, trained on 32,000 images, repeats counted (6.4 passes",
        "100 images/s. The decay of noisy was changed.",
        *("4.125", "5.125", "0.321", "0123456789abcdef"),
        "Measured on: Abacus <IX> & sons, 2 CPU threads",
        "5,000 training images of the embedded subset",
        "Plain baseline: 2 diverged",
        "993 samples are fewer",
    ):
        assert part in page
    assert "± repeats" not in page  # no convention has it


def test_a_continuous_denoiser_is_not_called_discrete(tmp_path: Path, no_plots: None) -> None:
    seen = read(tmp_path, made_up_results("mnist-paper"))
    assert "density bound, in [-1, 1] units, is 1.106" in seen
    assert "not comparable with discrete bits/dim" in seen


def test_sections_without_numbers_are_left_out(tmp_path: Path, no_plots: None) -> None:
    """Neither training set nor machine is known for models trained elsewhere."""
    results = made_up_results()
    del results["runs"]["plain"], results["bits_per_dim"]["plain"], results["receptive_field"]
    results["bits_per_dim"]["pair_less"] = {}
    results["probes"] = {"skipped": "the images have no labels"}
    results["frechet"] = {"skipped": "nothing suits"}
    results["budget_minutes"] = None
    for run in results["runs"].values():
        del run["passes_over_training_set"]
    kept = {k: v for k, v in made_up_pictures().items() if "single" not in k and k != "plain"}
    seen = read(tmp_path, results, kept)
    for part in ("Single-step", "Plain PixelCNN++", "Receptive fields", "passes over", "images/s"):
        assert part not in seen
    assert "trained on 32,000 images, repeats counted." in seen
    assert "Not measured: the images have no labels." in seen
    assert "Not measured: nothing suits." in seen


def test_diverged_samples_are_counted_not_hidden(tmp_path: Path, no_plots: None) -> None:
    pictures, results = made_up_pictures(), made_up_results()
    pictures["noisy"][3, 0, 2, 2] = math.inf
    pictures["noisy"][5, 0, 2, 2] = math.nan
    results["samples"]["diverged"]["noisy"] = 2
    assert "2 of 64 diverged" in read(tmp_path, results, pictures)
    shown = visible(pictures["noisy"])
    assert (shown[[3, 5]] == 0).all()
    rest = [i for i in range(64) if i not in (3, 5)]
    assert shown[rest].equal(pictures["noisy"][rest])


def test_advice_fits_the_data() -> None:
    assert "by heart" in " ".join(advice(made_up_results(), ["train"]))
    full = " ".join(advice(made_up_results(embedded_subset=False, train_images=60_000), ["train"]))
    assert "by heart" not in full
    assert "0.5 passes" in full
    assert "`train` trains for longer" in full


def test_packaged_models_are_told_with_the_numbers_of_their_card(
    tmp_path: Path, no_plots: None
) -> None:
    results = made_up_results() | {"card": card_numbers(), "budget_minutes": None}
    for run in results["runs"].values():
        del run["passes_over_training_set"]
        run["images"] = 480_000
    seen = read(tmp_path, results)
    assert "trained on 480,000 images, repeats counted: 8.0 passes over 60,000 images" in seen
    assert "To all 60,000 training images, of which the subset is a part" in seen
    assert "1.09 for 10,000 samples" in seen
    assert "97.9 % with all 60,000 images" in seen
    assert "dsmooth/pretrained" not in seen


def test_only_mnist_stands_beside_the_paper(page: str, tmp_path: Path, no_plots: None) -> None:
    paper = page[page.rindex("Beside the paper") : page.rindex("Training curves")]
    numbers = ("1.106", "2.99", "3.23", "−4.01", "−3.23", "3.125")
    for part in (*numbers, "91.3 %", "98.5 %", "88.7 %", "2,345"):
        assert part in paper
    assert paper.count("not comparable") == 2
    assert "2.51" not in page
    assert "FID" not in page.replace("not comparable with an FID", "")
    assert "Beside the paper" not in read(tmp_path, made_up_results(name="fashion-mnist"))


# Numbers of images at which models were scored; the denoiser at half of the noisy model's.
IMAGES = [1000 * 2**i for i in range(6)]


def scored(first: float, gain: float, images: list[int] = IMAGES) -> list[dict[str, Any]]:
    """A log whose score falls by `gain` with every doubling of the images."""
    return [{"event": "start", "images": 0}] + [
        {"event": "evaluation", "images": n, "bits_per_dim": first - gain * math.log2(n / 1000)}
        for n in images
    ]


HISTORIES = {
    "noisy": scored(1.2, 0.01),
    "denoiser": scored(1.1, 0.04, IMAGES[::2]),
    "plain": scored(1.15, 0.03),
}


def test_growth_is_of_both_losses_less_the_entropy(tmp_path: Path) -> None:
    results = made_up_results()
    curves = held_out_curves(results["runs"], HISTORIES)
    assert curves is not None
    assert [n for n, _ in curves["pair"]] == IMAGES[::2]
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.25)
    expected = [2.3 - entropy - 0.05 * i for i in (0, 2, 4)]
    assert [v for _, v in curves["pair"]] == pytest.approx(expected)
    assert len(curves["plain"]) == len(IMAGES)
    seen = read(tmp_path, results, histories=HISTORIES)
    words = "Pair, equal compute 8,000 for each network, halfway through a longer run"
    assert f"{words} {expected[1] - 0.05:.3f}" in seen


def test_equal_cost_gives_the_pair_half_the_images() -> None:
    curve = [(1000, 1.0), (4000, 0.9)]
    assert [at(curve, n) for n in (2000, 500, 9000)] == pytest.approx([0.95, 1.0, 0.9])
    cost = equal_cost({"pair": [(1000, 1.0), (16000, 0.8)], "plain": [(1000, 1.1), (8000, 0.95)]})
    assert cost == pytest.approx(
        {"images": 8000, "plain": 0.95, "equal_images": 0.85, "equal_compute": 0.9}
    )


@pytest.mark.parametrize(
    ("changed", "histories"),
    [
        ({}, {role: HISTORIES[role] for role in ("noisy", "denoiser")}),
        ({"model": {"likelihood": "continuous"}}, HISTORIES),
        ({"smoothing": "laplace"}, HISTORIES),
        ({}, {**HISTORIES, "plain": [{"event": "start", "images": 0}]}),
    ],
)
def test_no_growth_where_the_numbers_do_not_compare(changed: Any, histories: Any) -> None:
    runs = made_up_results()["runs"]
    for run in runs.values():
        run["settings"] |= changed
    assert held_out_curves(runs, histories) is None


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


def test_a_table_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["", "n"], [["a < b\nsmall", "-1"], ["c", "2"]], "Title")
    assert table.markdown() == "|  | n |\n| --- | ---: |\n| a < b | -1 |\n| c | 2 |"
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Title", "a < b", "small", "-1"))
