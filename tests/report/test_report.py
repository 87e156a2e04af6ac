"""report.html: says what results.json holds, for every kind of pair, in one file."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from dsmooth.evaluate.receptive_field import receptive_fields
from dsmooth.fields import Json
from dsmooth.files import read_json
from dsmooth.pretrained import DEFAULT, find
from dsmooth.report import page as report_page
from dsmooth.report.page import (
    FOLDER,
    below_controls,
    curve_png,
    new_schedules,
    running_mean,
    write_report,
)
from dsmooth.reproduce import card_numbers
from dsmooth.tables import Table
from tests.helpers.report_checks import check_self_contained

METHODS = ("noisy", "two-step", "single-step", "plain")

CARD = read_json(find(DEFAULT) / "card.json")
BITS = CARD["bits_per_dim"]
BOUND = f"{BITS['pair']['value']:.3f}"


def made_up_results(**data: str) -> Json:
    """A results.json as `reproduce` would write it, of the packaged models' card."""
    card = deepcopy(CARD)
    for i, run in enumerate(card["runs"].values()):
        run |= {"parameters": 100_001 + i, "training_seconds": 4800.0}
        run["notes"] = ["the decay was changed\x1b[2J\ud800"]
    bits, probes = card["bits_per_dim"], card["probes"]["noisy"]
    bits["pair"]["conventions"][0]["meaning"] = "a < b"
    distances: Json = {"real": {"value": 0.321, "n_images": 900}}
    for i, name in enumerate(METHODS[1:]):
        sizes = {"n_images": 991 + i, "left_out": i, "warnings": []}
        distances[name] = {"value": 3.125 + i, "error": 0.25, "black": 0.807, **sizes}
    distances["plain"]["warnings"] = ["993 samples are fewer than the 1,024 features"]
    sizes = {"train_images": 5000, "test_images": 1000, "image_size": [28, 28]}
    machine = {"processor": "Abacus <IX> & sons", "processes": 1, "cpu_threads": 2}
    return {
        "dsmooth": "0.0.7",
        "name": "mnist-quick",
        "budget_minutes": 8.0,
        "data": {"name": "mnist", "embedded_subset": True, **sizes, **data},
        "machine": card["machine"] | machine,
        "runs": card["runs"],
        "samples": {"seed": 0, "diverged": dict.fromkeys(METHODS, 0)},
        "bits_per_dim": bits,
        "frechet": {
            "name": "Fréchet distance on mnist-classifier",
            "extractor": {"name": "mnist-classifier", "sha256": "0123456789abcdef", "resize": "-"},
            "reference": {"split": "train", "n_images": 5000},
            "distances": distances,
        },
        "probes": probes,
        "receptive_field": receptive_fields(),
    }


def made_up_pictures() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(METHODS, 64) | {f"held-out-{name}": 10 for name in METHODS[:3]}
    shapes["held-out"] = 10
    return {k: 2 * torch.rand(n, 1, 8, 8, generator=generator) - 1 for k, n in shapes.items()}


STEPS = [{"event": "step", "images": 320 * i, "bits_per_dim": 4 / i} for i in range(1, 101)]
HISTORY = [*STEPS, {"event": "evaluation", "images": 32_000, "bits_per_dim": 1.2}]


def read(folder: Path, results: Json, pictures: dict[str, torch.Tensor] | None = None) -> str:
    """The words of a report, white space collapsed."""
    histories = dict.fromkeys(results["runs"], HISTORY)
    commands = ["dsmooth reproduce --budget 64"]
    path, pictures = folder / "report.html", pictures or made_up_pictures()
    write_report(path, results, histories, pictures, commands)
    text = path.read_text(encoding="utf-8")
    check_self_contained(text)
    return " ".join(" ".join(ElementTree.fromstring(text)[1].itertext()).split())


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    page = read(tmp_path, made_up_results())
    pair, plain = (BITS[name]["conventions"][0] for name in ("pair", "plain"))
    less, terms = BITS["pair_less"]["plain"], BITS["pair"]
    for part in (
        f"{pair['value']:.4f} {pair['standard_error']:.4f}",
        f"{plain['value']:.4f} {plain['standard_error']:.4f}",
        f"{less['value']:.4f} ± {less['standard_error']:.4f}",
        *(f"{terms['noisy']:.4f} (noisy", f"−{-terms['smoothing']:.4f} (the noise"),
        *(f"{terms['denoiser']:.4f} (denoiser)", f"{BOUND} ± {pair['standard_error']:.3f}"),
        "3.125 ± 0.250 80.7 %",
        *("reproduce --budget 64", "100,001 parameters", "630,000 images", "10.5 passes"),
        *("changed\\x1b[2J\\ud800.", "4.125", "5.125", "0.321", "0123456789abcdef"),
        *("Abacus <IX> & sons", "2 diverged", "993 samples", "0.9, 0.99 0.9, 0.99 0.9, 0.99"),
        *("5,000 training images", "0.5 0.5 –"),
        # Beside the paper.
        *("98.5 %", "after down1 is right on 98.4 %, trained on 60,000 images", "3.23"),
    ):
        assert part in page
    assert "FID" not in page
    assert "± repeats" not in page  # no convention has it


def test_other_data_a_density_and_diverged_samples_are_called_so(tmp_path, no_plots: None) -> None:
    pictures, results = made_up_pictures(), made_up_results(name="fashion-mnist")
    pair = results["bits_per_dim"]["pair"]
    pair["likelihood"], pair["terms"]["continuous"] = "continuous", 0.7
    pictures["noisy"][[3, 5], 0, 2, 2] = torch.tensor([math.inf, math.nan])
    results["samples"]["diverged"]["noisy"] = 2
    seen = read(tmp_path, results, pictures)
    for part in (
        f"density bound, in [−1, 1] units, is {BOUND}",
        *("not comparable with discrete bits/dim", "2 of 64 diverged", "Fashion-MNIST"),
    ):
        assert part in seen
    assert "Beside the paper" not in seen


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
    assert all(why in seen for why in ("the images have no labels", "nothing suits"))


def test_packaged_models_are_told_with_the_numbers_of_their_card(tmp_path, no_plots: None) -> None:
    results = made_up_results() | {"card": card_numbers(), "budget_minutes": None}
    for run in results["runs"].values():
        del run["passes_over_training_set"]
    seen = read(tmp_path, results)
    assert "trained on 630,000 images, repeats counted: 10.5 passes over 60,000 images" in seen
    assert "To all 60,000 training images, of which the subset is a part" in seen
    distance = CARD["samples"]["of"]["two-step"]["distance"]["10000"]
    assert f"{distance:.2f} for 10,000 samples" in seen
    assert "on 98.4 % by all 60,000 images" in seen
    assert "dsmooth/pretrained" not in seen


def test_a_network_below_its_control_is_told() -> None:
    low, high = ({"accuracy": share, "held_out": share} for share in (0.9, 0.95))
    accuracy = {name: {"up0": low} for name in ("noisy", "untrained-noisy", "pixels")}
    assert below_controls(accuracy, "Noisy model", "noisy") == ""
    accuracy["untrained-noisy"]["up1"] = high
    told = below_controls(accuracy, "Noisy model", "noisy")
    assert all(part in told for part in ("90.0 %", "the same network untrained (95.0 %)"))


def test_schedules_that_begin_again_are_found_in_the_log() -> None:
    notes = [
        {"event": "note", "images": images, "text": text}
        for images, text in (
            (8, "prolonged from 8 to 16 images, its schedule begun again"),
            (9, "seed 0 up to 9 images, 1 from then on"),
            (16, "up to 16 images batch_size 16; then the optimizer began again"),
        )
    ]
    assert new_schedules([*notes, {"event": "step", "images": 3}]) == [8, 16]


def test_running_mean_keeps_lines_and_few_points() -> None:
    line = [(i, 2.0 * i) for i in range(301)]
    smooth = running_mean(line)
    assert [i for i, _ in smooth] == list(range(301))
    assert [v for _, v in smooth[3:-3]] == pytest.approx([v for _, v in line[3:-3]])
    assert running_mean([(5, 1.5)]) == [(5, 1.5)]
    for entries in ([], HISTORY[:1]):
        assert curve_png(entries).startswith(b"\x89PNG")


def test_plots_are_legible_on_light_and_on_dark_pages() -> None:
    """Contrasts of WCAG 2; invert(1) and hue-rotate(180deg) as Filter Effects Module 1 has them."""
    page = (FOLDER / "page.html").read_text()
    assert ".curves img { filter: invert(1) hue-rotate(180deg); }" in page
    luma = np.array([0.213, 0.715, 0.072])
    turn = 2 * np.tile(luma, (3, 1)) - np.eye(3)

    def luminance(rgb: object) -> float:
        rgb = np.asarray(rgb)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = (luminance(to_rgb(card)) for card in re.findall(r"--card: (#\w+);", page))
    for colour in ("TEXT", "LINE", "DOTS", "THIRD", "QUIET"):
        rgb = np.array(to_rgb(getattr(report_page, colour)))
        turned = np.clip(turn @ (1 - rgb), 0, 1)
        assert (light + 0.05) / (luminance(rgb) + 0.05) > 4.5
        assert (luminance(turned) + 0.05) / (dark + 0.05) > 4.5


def test_a_table_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["", "n"], [["a < b\nsmall", "-1"], ["c", "2"]], "Title")
    assert table.markdown() == "|  | n |\n| --- | ---: |\n| a < b | -1 |\n| c | 2 |"
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Title", "a < b", "small", "-1"))
