"""The benchmark suite's own laws: comparison, the model of time, and docs made from results."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import command, figures, measure, results, scale, scale_training, write_docs
from dsmooth.machine import cpu_name

PROJECT = Path(__file__).resolve().parents[1]


def result(
    seconds: tuple[float, float, float], ratio: tuple[float, float, float] = (2.0, 1.9, 2.1)
) -> dict[str, Any]:
    return {
        "suite": "loss",
        "case": "small",
        "ours": "native",
        "device": "a CPU",
        "threads": 1,
        "seconds": {"native": list(seconds)},
        "ratios": {"eager": list(ratio)},
    }


@pytest.mark.parametrize(
    ("now", "verdict"),
    [((1.05, 0.95, 1.2), None), ((2.0, 1.9, 2.1), "WORSE"), ((0.5, 0.4, 0.6), "better")],
)
def test_a_difference_is_named_when_it_exceeds_the_spread(
    now: tuple[float, float, float], verdict: str | None
) -> None:
    *sentences, summary = results.compare([result((1.0, 0.9, 1.1))], [result(now)])
    assert [verdict in sentence for sentence in sentences] == ([] if verdict is None else [True])
    assert summary == f"2 numbers compared, {len(sentences)} differ beyond the spread."


def test_the_table_says_the_spread_and_warns_of_load() -> None:
    facts = {"load": 0.5, "cores": 2, "img_per_s": 12_812.0, "fraction_of_limit": 0.0}
    quiet = result((1.0, 0.9, 1.25)) | facts | {"peak_memory": None}
    text = io.StringIO()
    Console(file=text, width=120).print(results.table([quiet]))
    assert "-10% +25%" in text.getvalue()
    assert "12,800 img/s" in text.getvalue()
    assert results.spread_text(quiet | {"rounds": 1}) == ""
    assert results.load_warning([quiet]) is None
    warning = results.load_warning([quiet, quiet | {"load": 7.25}])
    assert warning is not None
    assert "the load exceeded the 2 cores in 1 of 2 cases (up to 7.2, in loss small)" in warning


def test_a_long_measurement_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "LINE_SECONDS", -1.0)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    measure.take_turns({"one": lambda: None, "two": lambda: None}, rounds=1, warmup=0)
    assert capfd.readouterr().err.splitlines() == [
        "    round 1 of 1: one",
        "    round 1 of 1: two",
    ]


def test_a_lost_speedup_is_worse_on_any_machine() -> None:
    before = result((1.0, 0.9, 1.1), (4.0, 3.9, 4.1))
    after = result((9.0, 8.0, 10.0), (2.0, 1.9, 2.1)) | {"device": "another CPU"}
    *sentences, summary = results.compare([before], [after])
    assert [s for s in sentences if "ratio to eager 4 -> 2" in s and "WORSE" in s] == sentences
    assert summary.startswith("1 numbers compared, 1 differ")


def test_a_new_run_replaces_its_own_cases_alone() -> None:
    other = result((3.0, 3.0, 3.0)) | {"case": "large"}
    merged = results.merge([result((1.0, 1.0, 1.0)), other], [result((2.0, 2.0, 2.0))])
    assert {r["case"]: r["seconds"]["native"][0] for r in merged} == {"small": 2.0, "large": 3.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": []}', '{"results": [1]}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.json is not a results\.json"):
        results.load(tmp_path / "mine.json")


@pytest.mark.parametrize("path", write_docs.saved_results(), ids=lambda path: path.stem)
def test_the_model_of_time_is_within_a_quarter_of_what_was_measured(path: Path) -> None:
    checked = list(scale.check(results.load(path)))
    assert len(checked) >= 8
    for case, predicted, measured in checked:
        assert abs(predicted / measured - 1) <= 0.25, case


def test_many_workers_share_the_images() -> None:
    worker = scale.Worker(rate=1e11, bandwidth=1e10, tau=1e-6)
    sweep = scale.Sweep(stages=1000, flops=1e9, weights=1000)

    def seconds(n_images: int, workers: int) -> float:
        return scale.seconds(worker, [sweep], n_images, workers)

    assert seconds(16 * 640, 64) == pytest.approx(seconds(16 * 10, 1))
    assert seconds(16 * 10, 1) == pytest.approx(10 * seconds(16, 1))
    assert seconds(17, 1) > seconds(16, 1) * 17 / 16  # a second sweep pays its waiting again


def test_more_gpus_share_a_batch_and_pay_for_what_travels() -> None:
    def seconds(gpus: int, images: int = 64, **assumed: float) -> float:
        cluster = scale_training.Cluster(gpus, **assumed)
        return scale_training.step_seconds(cluster, 5e10, 50_000_000, images)

    free = {"inside": math.inf, "between": math.inf, "launches": 0.0}
    assert seconds(64, **free) == pytest.approx(seconds(1))
    assert seconds(1, 640) < seconds(8, 640) < seconds(16, 640)
    # Where nothing is left to hide behind, all that travels is waited for.
    ring = 2 * 7 / 8 * 4 * 50_000_000 / 300e9
    assert seconds(8, images=0, launches=0.0) == pytest.approx(ring)
    assert seconds(8, images=0) == scale_training.Cluster(8).launches


def test_the_page_has_what_the_model_of_training_gives() -> None:
    page = (Path(__file__).parents[1] / "docs" / "many_machines.md").read_text()
    assert "\n".join(scale_training.rows()) in page


def test_the_documents_are_what_the_results_give() -> None:
    for path, text in write_docs.texts().items():
        assert path.read_text() == text, f"run `python benchmarks --write-docs` for {path.name}"


def test_figures_are_drawn_from_the_committed_results(tmp_path: Path) -> None:
    everything = [r for path in write_docs.saved_results() for r in results.load(path)]
    drawn = list(figures.draw_all(everything, tmp_path))
    assert {path.name for path in drawn} == {"speedup.png", "roofline.png", "image_size.png"}


def test_a_result_says_where_it_was_measured() -> None:
    machine = measure.machine()
    assert machine["device"] == cpu_name()
    assert machine["cores"] >= 1
    assert {"python", "torch", "dsmooth"} <= machine["versions"].keys()


def test_the_command_names_its_suites_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = [sys.executable, str(PROJECT / "benchmarks"), "--list"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert {"sampler", "logistic_mixture", "training_step"} <= set(names.split())
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nonsense"])
    assert command.main() == 2
    assert "unknown suite 'nonsense'" in capsys.readouterr().err
