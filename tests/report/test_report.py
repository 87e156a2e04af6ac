"""report.html: says what results.json holds, for every kind of pair, in one file."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from dsmooth.evaluate.receptive_field import receptive_fields
from dsmooth.report import plots
from dsmooth.report.contents import Report, ReportData
from dsmooth.report.describe import packaged_card
from dsmooth.report.plots import Curve, curve_png, running_mean
from dsmooth.report.sections import TEMPLATE, write_report
from dsmooth.report.words import below_controls, settings_table
from dsmooth.results import FLOOR, Distance, Extractor, FrechetResult, ProbeScore
from dsmooth.smoothing import SMOOTHINGS
from dsmooth.tables import Table
from tests.helpers.report_checks import check_self_contained

METHODS = ("noisy", "two-step", "single-step", "plain")

CARD = packaged_card()
BITS = CARD.bits
BOUND = f"{BITS.pair.value:.3f}"


def made_up_report(**data: str) -> Report:
    """The report of a reproduction with numbers of the packaged models' card."""
    models = {}
    for i, (role, model) in enumerate(CARD.models.items()):
        notes = ("the decay was changed\x1b[2J\ud800",)
        training = replace(model.training, seconds=4800.0, notes=notes)
        models[role] = replace(model, parameters=100_001 + i, training=training)
    first, *others = BITS.pair.conventions
    pair = replace(BITS.pair, conventions=(replace(first, meaning="a < b"), *others))
    distances = {
        FLOOR: Distance(0.321, 0.125, 900, 0.5),
        "test images": Distance(2.625, 0.125, 900, 0.5),
    }
    for i, name in enumerate(METHODS[1:]):
        distances[name] = Distance(3.125 + i, 0.25, 991 + i, 0.807, left_out=i)
    return Report(
        name="mnist-quick",
        origin="trained",
        budget_minutes=8.0,
        data=replace(ReportData("mnist", True, 5000, 1000, (28, 28), 1), **data),
        machine=replace(CARD.machine, processor="Abacus <IX> & sons", cpu_threads=2),
        models=models,
        hidden_classes=0,
        seed=0,
        diverged=dict.fromkeys(METHODS, 0),
        bits=replace(BITS, models={**BITS.models, "pair": pair}),
        frechet=FrechetResult(
            "Fréchet distance on mnist-classifier",
            Extractor("mnist-classifier", "0123456789abcdef", "-"),
            1024,
            5000,
            distances,
            ("993 samples are fewer than the 1,024 features", "2 plain left out"),
        ),
        probes=CARD.probes["noisy"],
        receptive_fields=receptive_fields(),
        skipped={},
    )


def made_up_pictures() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(METHODS, 64) | {f"held-out-{name}": 10 for name in METHODS[:3]}
    shapes["held-out"] = 10
    return {k: 2 * torch.rand(n, 1, 8, 8, generator=generator) - 1 for k, n in shapes.items()}


CURVE = Curve([(320 * i, 4 / i) for i in range(1, 101)], [(32_000, 1.2)], [16_000])


def read(folder: Path, report: Report, pictures: dict[str, torch.Tensor] | None = None) -> str:
    """The words of a report, white space collapsed."""
    curves = dict.fromkeys(report.models, CURVE)
    path, pictures = folder / "report.html", pictures or made_up_pictures()
    write_report(path, report, curves, pictures, "dsmooth reproduce --budget 64")
    text = path.read_text(encoding="utf-8")
    check_self_contained(text)
    return " ".join(" ".join(ElementTree.fromstring(text)[1].itertext()).split())


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    page = read(tmp_path, made_up_report())
    pair, plain = (BITS.models[name].conventions[0] for name in ("pair", "plain"))
    difference, terms = BITS.difference, BITS.pair.terms
    for part in (
        f"{pair.value:.4f} {pair.error:.4f}",
        f"{plain.value:.4f} {plain.error:.4f}",
        f"{difference.value:.4f} ± {difference.error:.4f}",
        *(f"{terms.noisy:.4f} (noisy", f"−{-terms.smoothing:.4f} (the noise"),
        *(f"{terms.discretized:.4f} (denoiser)", f"{BOUND} ± {pair.error:.3f}"),
        "3.125 ± 0.250 80.7 %",
        *("reproduce --budget 64", "100,001 parameters", "630,000 images", "10.5 passes"),
        *("Test images 900 images 2.625", "Held-out training images 900 images 0.321"),
        *("changed\\x1b[2J\\ud800.", "4.125", "5.125", "0.321", "0123456789abcdef"),
        *("Abacus <IX> & sons", "2 plain left out", "993 samples", "0.9, 0.99 0.9, 0.99 0.9, 0.99"),
        *("5,000 training images", "0.5 0.5 –", "in 80.0 minutes, 131 images/s"),
        # Compared with the paper.
        *("98.5 %", "after down1 is right on 98.4 %, trained on 60,000 images", "3.23"),
    ):
        assert part in page
    assert "FID" not in page
    assert "± repeats" not in page  # no convention has it


def test_other_data_a_density_and_diverged_samples_are_called_so(tmp_path, no_plots: None) -> None:
    pictures, report = made_up_pictures(), made_up_report(name="fashion-mnist")
    pair = report.bits.pair
    terms = replace(pair.terms, continuous=0.7)
    pair = replace(pair, likelihood="continuous", terms=terms, classes="hidden")
    pictures["noisy"][[3, 5], 0, 2, 2] = torch.tensor([math.inf, math.nan])
    report = replace(
        report,
        bits=replace(report.bits, models={"pair": pair}),
        diverged={**report.diverged, "noisy": 2},
        hidden_classes=30,
    )
    seen = read(tmp_path, report, pictures)
    for part in (
        f"density bound, in [−1, 1] units, is {BOUND}",
        *("not comparable with discrete bits/dim", "2 of 64 diverged", "Fashion-MNIST"),
        *("saw a label of zeros", "one of 30 classes of the model's own"),
    ):
        assert part in seen
    assert "Compared with the paper" not in seen


def test_sections_without_numbers_are_left_out(tmp_path: Path, no_plots: None) -> None:
    """Neither training set nor machine is known for models trained elsewhere."""
    report = made_up_report()
    models = {
        role: replace(model, training=replace(model.training, training_images=None))
        for role, model in report.models.items()
        if role != "plain"
    }
    report = replace(
        report,
        models=models,
        bits=replace(report.bits, models={"pair": report.bits.pair}, difference=None),
        receptive_fields=None,
        probes=None,
        frechet=None,
        skipped={"probes": "the images have no labels", "frechet": "nothing suits"},
        budget_minutes=None,
        origin="given",
    )
    kept = {k: v for k, v in made_up_pictures().items() if "single" not in k and k != "plain"}
    seen = read(tmp_path, report, kept)
    for part in ("Single-step", "Plain PixelCNN++", "Receptive fields", "passes over", "images/s"):
        assert part not in seen
    assert all(why in seen for why in ("the images have no labels", "nothing suits"))


def test_packaged_models_are_told_with_the_numbers_of_their_card(tmp_path, no_plots: None) -> None:
    report = replace(made_up_report(), origin="packaged", budget_minutes=None)
    seen = read(tmp_path, report)
    assert "trained on 630,000 images, repeats counted: 10.5 passes over 60,000 images" in seen
    assert "To all 60,000 training images, of which the subset is a part" in seen
    distance = CARD.samples["two-step"].distance["10000"]
    assert f"{distance:.2f} for 10,000 samples" in seen
    assert "on 98.4 % by all 60,000 images" in seen
    assert "dsmooth/pretrained" not in seen


@pytest.mark.parametrize("kind", SMOOTHINGS)
def test_the_noise_of_every_smoothing_is_named(kind: str, tmp_path: Path, no_plots: None) -> None:
    report = made_up_report()
    noisy = report.models["noisy"]
    models = {
        **report.models,
        "noisy": replace(noisy, settings={**noisy.settings, "smoothing": kind}),
    }
    assert f"{kind} noise of scale" in read(tmp_path, replace(report, models=models)).lower()


def test_every_value_reaches_the_page_escaped(tmp_path: Path, no_plots: None) -> None:
    """Whatever its words are: the same sections, pictures and tables."""
    plain, hostile = made_up_report(), "<script>x</script> & `code"
    result = replace(plain.frechet, name=hostile, warnings=(hostile,))
    extractor = replace(plain.frechet.extractor, name=hostile, resize=hostile)
    report = replace(
        plain,
        name=hostile,
        data=replace(plain.data, name=hostile),
        frechet=replace(result, extractor=extractor),
    )
    read(tmp_path, replace(plain, data=replace(plain.data, name="own")))
    expected = tags(tmp_path / "report.html")
    assert hostile.partition("`")[0] in read(tmp_path, report)
    assert tags(tmp_path / "report.html") == expected


def tags(path: Path) -> list[str]:
    """The elements of a page, without code in its paragraphs."""
    elements = ElementTree.fromstring(path.read_text()).iter()
    return [element.tag for element in elements if element.tag != "code"]


def test_settings_of_a_plain_model_have_no_noise() -> None:
    table = settings_table(CARD.models)
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.head == ["Setting", "noisy", "denoiser", "plain"]
    assert rows["its scale σ"] == ["0.5", "0.5", "–"]
    assert rows["seed"] == [str(CARD.models[role].settings["seed"]) for role in CARD.models]


def test_a_network_below_its_control_is_told() -> None:
    low, high = (ProbeScore(share, 0.01, 1.0, 5, share) for share in (0.9, 0.95))
    accuracy = {name: {"up0": low} for name in ("noisy", "untrained-noisy", "pixels")}
    assert below_controls(accuracy, "noisy") == ""
    accuracy["untrained-noisy"]["up1"] = high
    words = below_controls(accuracy, "noisy")
    assert all(part in words for part in ("90.0 %", "the same network untrained (95.0 %)"))


def test_running_mean_keeps_lines_and_few_points() -> None:
    line = [(i, 2.0 * i) for i in range(301)]
    smooth = running_mean(line)
    assert [i for i, _ in smooth] == list(range(301))
    assert [v for _, v in smooth[3:-3]] == pytest.approx([v for _, v in line[3:-3]])
    assert running_mean([(5, 1.5)]) == [(5, 1.5)]
    for curve in (Curve([], []), Curve([(320, 4.0)], []), CURVE):
        assert curve_png(curve).startswith(b"\x89PNG")


def test_plots_are_legible_on_light_and_on_dark_pages() -> None:
    """Contrasts of WCAG 2; invert(1) and hue-rotate(180deg) as Filter Effects Module 1 has them."""
    page = TEMPLATE.read_text()
    assert ".curves img { filter: invert(1) hue-rotate(180deg); }" in page
    luma = np.array([0.213, 0.715, 0.072])
    turn = 2 * np.tile(luma, (3, 1)) - np.eye(3)

    def luminance(rgb: object) -> float:
        rgb = np.asarray(rgb)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = (luminance(to_rgb(card)) for card in re.findall(r"--card: (#\w+);", page))
    for colour in ("TEXT", "LINE", "DOTS", "THIRD", "QUIET"):
        rgb = np.array(to_rgb(getattr(plots, colour)))
        turned = np.clip(turn @ (1 - rgb), 0, 1)
        assert (light + 0.05) / (luminance(rgb) + 0.05) > 4.5
        assert (luminance(turned) + 0.05) / (dark + 0.05) > 4.5


def test_a_table_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["", "n"], [["a < b\nsmall", "-1"], ["c", "2"]], "Title")
    assert table.markdown() == "|  | n |\n| --- | ---: |\n| a < b | -1 |\n| c | 2 |"
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Title", "a < b", "small", "-1"))
