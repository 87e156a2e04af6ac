"""report.html: says what results.json holds, for every kind of pair, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from dsmooth.evaluate.receptive_field import receptive_fields
from dsmooth.experiments import Machine, ModelSummary, Report
from dsmooth.files import structured
from dsmooth.pretrained import packaged
from dsmooth.report.sections import write_report
from dsmooth.results import FLOOR, BitsResult, Distance, Extractor, FrechetResult, ProbeResult
from dsmooth.text import Table
from dsmooth.work import read_record
from tests.helpers.report_checks import check_self_contained

METHODS = ("noisy", "two-step", "single-step", "plain")
# Numbers of the packaged models.
CARD = read_record(packaged()["mnist"] / "card.json")["result"]
BITS = structured(CARD["bits"], BitsResult, "")
MODELS = structured(CARD["models"], dict[str, ModelSummary], "")
PROBES = structured(CARD["probes"]["noisy"], ProbeResult, "")
MACHINE = structured(CARD["machine"], Machine, "")


def made_up_report() -> Report:
    """The report of a reproduction."""
    accuracy = {**PROBES.accuracy, "denoiser": PROBES.accuracy["noisy"]}
    distances = {
        FLOOR: Distance(0.321, 0.125, 900, 0.5),
        "test images": Distance(2.625, 0.125, 900, 0.5),
    }
    for i, name in enumerate(METHODS[1:]):
        distances[name] = Distance(3.125 + i, 0.25, 991 + i, 0.807)
    return Report(
        name="mnist-quick",
        data="mnist",
        embedded=True,
        train_images=5000,
        test_images=1000,
        image_size=(28, 28),
        machine=replace(MACHINE, processor="Abacus <IX> & sons", cpu_threads=2),
        models=MODELS,
        seed=3,
        diverged={"noisy": 2, "plain": 0},
        bits=BITS,
        frechet=FrechetResult(
            "Fréchet distance on mnist-classifier",
            Extractor("mnist-classifier", "0123456789abcdef", "-"),
            1024,
            5000,
            distances,
            ("993 samples are fewer than the 1,024 features", "2 plain left out"),
        ),
        probes=replace(PROBES, accuracy=accuracy),
        receptive_fields=receptive_fields(),
    )


def read(folder: Path, report: Report, methods: Sequence[str] = METHODS) -> str:
    """The words of a report of these methods, white space collapsed."""
    path = folder / "report.html"
    x = torch.rand(64, 1, 8, 8, generator=torch.manual_seed(0)) * 2 - 1
    held_out = ("held-out", *(f"held-out-{name}" for name in methods if name != "plain"))
    write_report(path, report, dict.fromkeys(methods, x), dict.fromkeys(held_out, x[:10]))
    text = path.read_text(encoding="utf-8")
    check_self_contained(text)
    return " ".join(" ".join(ElementTree.fromstring(text)[1].itertext()).split())


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    page = read(tmp_path, made_up_report())
    pair, plain = (BITS.models[name].numbers.discrete for name in ("pair", "plain"))
    difference, terms = BITS.difference, BITS.pair.terms
    for part in (
        f"{pair.value:.4f} {pair.error:.4f}",
        f"{plain.value:.4f} {plain.error:.4f}",
        f"{difference.value:.4f} ± {difference.error:.4f}",
        *(f"{terms.noisy:.4f}", f"{terms.smoothing:.4f}", f"{terms.discretized:.4f}"),
        *("Two-step samples 991 3.125 ± 0.250 80.7 %", "4.125", "5.125"),
        *("Test images 900 2.625", "Held-out training images 900 0.321"),
        *("0123456789abcdef", "2 plain left out", "993 samples", "5,000 training images"),
        *("noisy 2, plain 0", "Abacus <IX> & sons", "seed 3"),
        *("98.5 %", "down1 98.4", "scale 0.5 0.5 –", "best block"),
        *(f"{model.parameters:,}" for model in MODELS.values()),
        *(f"{m.images:,} {m.seconds / 60:.1f}" for m in (v.training for v in MODELS.values())),
    ):
        assert part in page
    assert "FID" not in page
    assert "± repeats" not in page  # no convention has it


def test_sections_without_numbers_are_left_out(tmp_path: Path, no_plots: None) -> None:
    report = made_up_report()
    bits = replace(report.bits, models={"pair": report.bits.pair}, difference=None)
    models = {k: replace(v, training=None) for k, v in report.models.items() if k != "plain"}
    report = replace(report, models=models, bits=bits, probes=None, frechet=None)
    seen = read(tmp_path, report, ("noisy", "two-step"))
    for part in ("E[x | x̃]", "Plain", "probes", "Fréchet", "paired"):
        assert part not in seen


def test_every_value_reaches_the_page_escaped(tmp_path: Path, no_plots: None) -> None:
    """Whatever its words are: the same sections, pictures and tables."""
    plain, hostile = made_up_report(), "<script>x</script> & `code` \x1b[2J\ud800"
    result = replace(plain.frechet, name=hostile, warnings=(hostile,) * 2)
    extractor = replace(plain.frechet.extractor, name=hostile, resize=hostile)
    report = replace(
        plain, name=hostile, data=hostile, frechet=replace(result, extractor=extractor)
    )
    read(tmp_path, plain)
    expected = tags(tmp_path / "report.html")
    assert r"<script>x</script> & `code` \x1b[2J\ud800" in read(tmp_path, report)
    assert tags(tmp_path / "report.html") == expected


def tags(path: Path) -> list[str]:
    """The elements of a page."""
    return [element.tag for element in ElementTree.fromstring(path.read_text()).iter()]


def test_a_table_in_markdown_and_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["", "n"], [["a < b\nsmall", "-1"], ["c", "2"]], "Title")
    assert table.markdown() == "|  | n |\n| --- | ---: |\n| a < b | -1 |\n| c | 2 |"
    table.show()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Title", "a < b", "small", "-1"))
