"""The record of a request: computed once, refused for another request, the same after any kill."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsmooth.files import read_json, write_atomically, write_json
from dsmooth.record import Record, read_result
from tests.helpers.data_makers import refuses
from tests.helpers.kills import as_killed, contents, states_of_kills

pytestmark = pytest.mark.quick
REQUEST = {"seed": 0, "sizes": (8, 8), "weights_sha256": {"noisy": "0" * 64}}


@dataclass(frozen=True)
class Result:
    value: int
    pair: tuple[int, ...] = (1, 2)


def record(path: Path, request: dict[str, object] = REQUEST, **options: object) -> Record:
    return Record(path, request, Result, str, **options)


def test_a_result_is_computed_once_for_each_request(tmp_path: Path) -> None:
    path, calls = tmp_path / "result.json", itertools.count(1)

    def obtain(seed: int = 0, **options: object) -> int:
        request = {**REQUEST, "seed": seed}
        return record(path, request, **options).obtain(lambda: Result(next(calls))).value

    assert [obtain(), obtain()] == [1, 1]
    words = r"result.json is of another request: its seed is 0, not 1; choose another folder"
    refuses(words, obtain, 1)
    assert record(path, {**REQUEST, "seed": 7}, free=["seed"]).result == Result(1)
    assert read_result(path, Result) == Result(1)
    assert obtain(1, replace=True) == 2
    refuses("its seed is 1, not 0", obtain)


def test_parts_are_kept_until_the_result_is(tmp_path: Path) -> None:
    path, calls = tmp_path / "result.json", []

    def compute(letter: str) -> str:
        calls.append(letter)
        return letter

    for letter in "ab":
        assert record(path).part(letter, lambda letter=letter: compute(letter)) == letter
    assert record(path).part("a", lambda: compute("a")) == "a"
    assert calls == ["a", "b"]
    assert read_result(path, Result) is None
    record(path).finish(Result(5))
    assert record(path).parts == {}
    assert read_json(path)["request"] == {**REQUEST, "sizes": [8, 8]}


def test_other_files_are_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    record(path).finish(Result(1))
    content = read_json(path)
    for change, words in (
        ({"version": 0}, "is not a record of dsmooth .*: remove it"),
        ({"request": None}, "is damaged: it needs a request and parts"),
        ({"result": {"value": "1"}}, r"is damaged: value: Expected `int`, got `str`; remove it"),
        ({"result": {"value": 1, "other": 1}}, "is damaged: Result has no field other"),
        ({"parts": {"a": 1}}, "is damaged: .*Expected `str`, got `int`"),
    ):
        write_json(path, {**content, **change})
        refuses(f"result.json {words}", record, path)


def draw(folder: Path, count: int) -> None:
    """As a stage of `reproduce` does: an image file and a picture, then the record."""
    images = Record(folder / "x.json", {"count": count}, Result, str, replace=True)
    if images.missing(["x.npz", "x.png"]):
        for name in ("x.png", "x.npz"):
            write_atomically(folder / name, f"{name} of {count}".encode())
        images.keep_files("x.npz", "x.png")


@pytest.mark.parametrize("before", [None, 4])
@pytest.mark.parametrize("after", [4, 6])
def test_killed_at_any_change_the_files_are_those_of_the_last_request(
    tmp_path: Path, before: int | None, after: int
) -> None:
    """Killed while it draws 6, over nothing or over 4; then 4 or 6 are requested."""
    draw(tmp_path / "whole", after)
    expected = contents(tmp_path / "whole")
    if before is not None:
        draw(tmp_path / "killed", before)
    states = states_of_kills(lambda: draw(tmp_path / "killed", 6), tmp_path / "killed")
    for number, state in enumerate(states):
        folder = as_killed(tmp_path / str(number), state)
        draw(folder, after)
        assert {k: v for k, v in contents(folder).items() if k in expected} == expected
        kept = Record(folder / "x.json", {"count": after}, Result, str)
        assert not kept.missing(["x.npz", "x.png"])
    assert len(states) > 5  # two of each file
