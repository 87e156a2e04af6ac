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
from dsmooth.data import load_dataset
from dsmooth.evaluate.probe import BLOCKS, PIXELS
from dsmooth.evaluate.receptive_field import receptive_fields
from dsmooth.pictures import visible
from dsmooth.presets import preset
from dsmooth.report.html import render_page
from dsmooth.report.page import advice, bound_sentence, making, write_report
from dsmooth.report.plots import curve_png, running_mean
from dsmooth.report.sections import bits_section, paper_section
from dsmooth.reproduce.results import card_numbers
from dsmooth.tables import Table
from tests.helpers.report_checks import check_self_contained

ROLES: tuple[Role, ...] = ("noisy", "denoiser", "plain")


def made_up_results(preset_name: str = "mnist-quick", **data: Any) -> dict[str, Any]:
    """A results.json as `reproduce` would write it, with numbers that are easy to find again."""
    runs = {}
    for i, role in enumerate(ROLES):
        settings = asdict(preset(preset_name, role))
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
            "notes": [f"the decay of {role} was changed"],
        }
    likelihood = preset(preset_name, "denoiser").model.likelihood
    pair = {"likelihood": likelihood, "value": 1.106, "standard_error": 0.0123}
    pair |= {"noisy": 1.132, "smoothing": -1.047, "denoiser": 1.021, "n_images": 987, "n_noise": 1}
    pair["conventions"] = [made_up_convention("discrete bound", 1.106, 0.0123, 1.8273)]
    pair["paper_readings"] = [2.99, -4.01]
    plain = {"conventions": [made_up_convention("discrete", 1.357, 0.0246, None)]}
    difference = {"value": -0.0124, "standard_error": 0.0006, "n_images": 987}
    methods = ("noisy", "two-step", "single-step", "plain")
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
        "samples": {"seed": 0, "diverged": dict.fromkeys(methods, 0)},
        "bits_per_dim": {
            "unit": "bits/dim",
            "pair": pair,
            "plain": plain,
            "pair_less": {"plain": difference},
        },
        "frechet": made_up_distances(),
        "probes": {
            "asked": asdict(ProbeSettings(train_images=2345, test_images=1000)),
            "accuracy": made_up_accuracies(),
        },
        "receptive_field": receptive_fields(),
    }


def made_up_convention(
    name: str, value: float, error: float, equation_4: float | None
) -> dict[str, Any]:
    numbers = {"value": value, "standard_error": error, "equation_4": equation_4}
    return {"name": name, "repeat_error": None, "comparable": True, "meaning": "a < b", **numbers}


def made_up_distances() -> dict[str, Any]:
    distances: dict[str, Any] = {"real": {"value": 0.321, "n_images": 900}}
    for i, name in enumerate(("two-step", "single-step", "plain")):
        distances[name] = {"value": 3.125 + i, "n_images": 991 + i, "left_out": i, "warnings": []}
        distances[name] |= {"error": 0.25, "black": 0.807}
    distances["plain"]["warnings"] = ["993 samples are fewer than the 1,024 features"]
    return {
        "name": "Fréchet distance on mnist-classifier",
        "extractor": {"name": "mnist-classifier", "sha256": "0123456789abcdef01", "resize": "none"},
        "reference": {"split": "train", "n_images": 5000},
        "distances": distances,
    }


def made_up_accuracies() -> dict[str, Any]:
    heights = {"noisy": 0.913, "denoiser": 0.887, "untrained-noisy": 0.8, "untrained-denoiser": 0.7}
    accuracy: dict[str, Any] = {PIXELS: {PIXELS: {"accuracy": 0.811, "standard_error": 0.01}}}
    for name, height in heights.items():
        accuracy[name] = {
            block: {"accuracy": height - i / 100, "standard_error": 0.01}
            for i, block in enumerate(BLOCKS)
        }
    return accuracy


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


def read(folder: Path, results: Mapping[str, Any], pictures: dict[str, torch.Tensor]) -> str:
    """The words of a report, white space collapsed."""
    histories = {role: made_up_history() for role in results["runs"]}
    commands = ["dsmooth reproduce --budget 64"]
    write_report(folder / "report.html", results, histories, pictures, commands)
    text = (folder / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    body = text[text.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The words of the report of `made_up_results`."""
    return read(tmp_path_factory.mktemp("page"), made_up_results(), made_up_pictures())


@pytest.mark.parametrize(
    "part",
    [
        *("pair: discrete bound * a < b", "1.1060 0.0123 1.8273", "1.3570 0.0246 –"),
        "less the plain model's bits/dim is -0.0124 ± 0.0006, paired over the same 987 images",
        "3.125 ± 0.250 80.7 %",
        *("1.1320 (noisy model)", "-1.0470", "1.0210", "discrete bound is 1.106 ± 0.012"),
        *("987 held-out", "Abacus <IX> & sons", "reproduce --budget 64", "6.4 passes"),
        *("100 images/s", "3.125", "4.125", "5.125", "0.321", "0123456789abcdef"),
        *("Measured on: Abacus", "2 CPU threads", "The decay of plain was changed."),
        *(
            "5,000 training images of the embedded subset",
            "Plain baseline: 2 diverged",
            "993 samples are fewer",
        ),
    ],
)
def test_the_page_says_what_was_measured(page: str, part: str) -> None:
    assert part in page
    assert "± repeats" not in page  # no convention has it


def test_a_continuous_denoiser_is_not_called_discrete() -> None:
    results = made_up_results("mnist-paper")
    assert "density bound, in [-1, 1] units, is 1.106" in bound_sentence(results)
    assert "not comparable with discrete bits/dim" in bits_section(results)[-1]


def test_models_trained_elsewhere_have_no_passes_and_no_rate() -> None:
    """Neither their training set nor their machine is known."""
    results = made_up_results()
    results["budget_minutes"] = None
    for run in results["runs"].values():
        del run["passes_over_training_set"]
    seen = " ".join(making(results))
    assert "passes over" not in seen
    assert "images/s" not in seen
    assert "trained on 32,000 images" in seen


def test_sections_without_numbers_are_left_out(tmp_path: Path, no_plots: None) -> None:
    results = made_up_results()
    del results["runs"]["plain"], results["bits_per_dim"]["plain"], results["receptive_field"]
    results["bits_per_dim"]["pair_less"] = {}
    results["probes"] = {"skipped": "the images have no labels"}
    results["frechet"] = {"skipped": "nothing suits"}
    kept = {k: v for k, v in made_up_pictures().items() if "single" not in k and k != "plain"}
    seen = read(tmp_path, results, kept)
    for part in ("Single-step", "Plain PixelCNN++", "Receptive fields"):
        assert part not in seen
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
    seen = read(tmp_path, results, made_up_pictures())
    assert "trained on 480,000 images, repeats counted: 8.0 passes over 60,000 images" in seen
    assert "To all 60,000 training images, of which the subset is a part" in seen
    assert "1.09 for 10,000 samples" in seen
    assert "97.9 % with all 60,000 images" in seen
    assert "dsmooth/pretrained" not in seen


def test_only_mnist_stands_beside_the_paper(page: str) -> None:
    paper = page[page.rindex("Beside the paper") : page.rindex("Training curves")]
    for part in (
        "1.106",
        "2.99",
        "3.23",
        "−4.01",
        "−3.23",
        "91.3 %",
        "98.5 %",
        "88.7 %",
        "3.125",
        "2,345",
    ):
        assert part in paper
    assert paper.count("not comparable") == 2
    assert "2.51" not in page
    assert "FID" not in page.replace("not comparable with an FID", "")
    assert paper_section(made_up_results(name="fashion-mnist")) == []


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


def test_a_table_has_three_renderings(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["", "n"], [["a < b\nsmall", "-1"], ["c", "2"]], "Title", totals=(1,))
    assert table.markdown() == "|  | n |\n| --- | ---: |\n| a < b | -1 |\n| c | 2 |"
    words = dict.fromkeys(("title", "lead", "introduction", "version"), "")
    page = render_page({"Section": [table]}, **words)
    assert 'a &lt; b<br><small>small</small></th><td class="number">−1</td>' in page
    assert '<tr class="total"><th scope="row">c</th>' in page
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Title", "a < b", "small", "-1"))
