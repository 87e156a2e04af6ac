"""Progress in words and numbers that a person asked for."""

from __future__ import annotations

import time

import pytest

from dsmooth.progress import make_bar, progress, shows_bars, significant, time_left

pytestmark = pytest.mark.quick


def test_significant_digits() -> None:
    cases = {(12_812.0, 3): "12,800", (999.6, 3): "1,000", (0.046812, 3): "0.0468", (0.0, 3): "0"}
    assert {case: significant(*case) for case in cases} == cases


def test_the_unit_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr("dsmooth.progress.LINE_SECONDS", 0.0)
    with progress("training", 20, "epochs") as done:
        done(4.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["training: 20 epochs", "training: 4/20 (22 %), 0:00 left"]
    assert time_left(time.monotonic() - 30, 0.2) == ", 2:00 left"
    assert lines[2].startswith("training: done in ")


@pytest.mark.parametrize(
    ("module", "terminal", "widgets", "bars"),
    [
        ("io", True, False, True),
        ("io", False, True, False),
        ("ipykernel.iostream", False, True, True),
        ("ipykernel.iostream", False, False, False),
    ],
)
def test_bars_are_for_terminals_and_notebooks(monkeypatch, module, terminal, widgets, bars) -> None:
    stream = type("Stream", (), {"__module__": module, "isatty": lambda self: terminal})()
    monkeypatch.setattr("dsmooth.progress.find_spec", lambda name: widgets or None)
    monkeypatch.setattr("sys.stdout", stream)
    assert shows_bars() == bars
    assert (make_bar("training", 10, 0) is not None) == bars
