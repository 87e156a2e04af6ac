"""The benchmark suite's own laws: comparison, and docs made from results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, results, write_docs

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


def test_a_lost_speedup_is_worse_on_any_machine() -> None:
    before = result((1.0, 0.9, 1.1), (4.0, 3.9, 4.1))
    after = result((9.0, 8.0, 10.0), (2.0, 1.9, 2.1)) | {"device": "another CPU"}
    *sentences, summary = results.compare([before], [after])
    assert [s for s in sentences if "ratio to eager 4 -> 2" in s and "WORSE" in s] == sentences
    assert summary.startswith("1 numbers compared, 1 differ")


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": []}', '{"results": [1]}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.json is not a results\.json"):
        results.load(tmp_path / "mine.json")


def test_the_documents_are_what_the_results_give() -> None:
    for path, text in write_docs.texts().items():
        assert path.read_text() == text, f"run `python benchmarks --write-docs` for {path.name}"


def test_the_command_names_its_suites_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = [sys.executable, str(PROJECT / "benchmarks"), "--list"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert {"sampler", "logistic_mixture", "training_step"} <= set(names.split())
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nonsense"])
    assert command.main() == 2
    assert "unknown suite 'nonsense'" in capsys.readouterr().err
