"""The benchmark suite: its command, and docs made from results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import command, write_docs

PROJECT = Path(__file__).resolve().parents[1]


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
