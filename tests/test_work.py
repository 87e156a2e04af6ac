"""Work in parts: the same values in any division, kept parts, progress."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from dsmooth import progress as progress_module
from dsmooth.files import read_json
from dsmooth.machine import torch_threads
from dsmooth.progress import advance_to, portion, progress
from dsmooth.work import Record, batches, map_parts
from tests.helpers.rank_processes import start_ranks, wait_for_all


@pytest.mark.quick
def test_batches_are_all_images_once() -> None:
    assert [*map(list, batches(5, 2))] == [[0, 1], [2, 3], [4]]
    assert batches(0, 2) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_values_come_in_order_with_the_callers_context(threads: int) -> None:
    def compute(part: range) -> tuple[int, int, bool, bool]:
        half = torch.is_autocast_enabled("cpu")
        return part.start, torch.get_num_threads(), torch.is_grad_enabled(), half

    with torch_threads(threads), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = list(map_parts(compute, batches(7, 2)))
    assert found == [(first, 1, False, True) for first in (0, 2, 4, 6)]


@pytest.mark.parametrize("in_threads", [False, True])
def test_an_error_in_a_part_is_the_callers(in_threads: bool) -> None:
    def compute(part: range) -> None:
        raise ValueError(f"part {part.start}")

    with pytest.raises(ValueError, match="part 0"):
        list(map_parts(compute, batches(4, 2), in_threads=in_threads))


@pytest.mark.quick
def test_kept_results_are_not_computed_again(tmp_path: Path) -> None:
    computed = []

    def compute(part: int) -> int:
        computed.append(part)
        if computed == [0, 1, 2]:
            raise KeyboardInterrupt
        return 10 * part

    def results() -> list[int]:
        records = [Record(tmp_path / f"{part}.json", {"of": "tens"}, int) for part in range(4)]
        return [record.obtain(partial(compute, part)) for part, record in enumerate(records)]

    with pytest.raises(KeyboardInterrupt):
        results()
    assert results() == [0, 10, 20, 30]
    assert computed == [0, 1, 2, 2, 3]


def test_progress_adds_up_over_parts_and_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    @contextmanager
    def show(title: str, total: int, unit: str):
        yield shown.append

    def compute(part: range) -> None:
        with portion(0.5):
            advance_to(0.5)
            advance_to(0.25)  # never back
        with portion(0.5):
            pass

    monkeypatch.setattr(progress_module, "_shown", show)
    with progress("measuring", 8):
        list(map_parts(compute, batches(8, 4), in_threads=False))
    assert shown == [1, 2, 4, 5, 6, 8]
    advance_to(0.5)  # nothing is open


SCRIPT = """
import sys
from contextlib import suppress
from pathlib import Path
from dsmooth.distributed import from_first, process_group, rank_and_size
from dsmooth.fields import SettingError
from dsmooth.fields import check_number
from dsmooth.files import write_json
from dsmooth.work import Record, map_parts

def compute(part):
    rank, size = rank_and_size()
    assert part % size == rank
    return 10 * part

with process_group():
    record = Record(Path("record.json"), {"of": "tens"}, list[int])
    found = list(map_parts(compute, range(5)))
    assert record.obtain(lambda: found) == [0, 10, 20, 30, 40]
    rank, _ = rank_and_size()
    write_json(Path("written.json"), {"rank": rank})  # the first process's stays
    try:
        from_first(lambda: check_number("count", 0))
    except SettingError as error:
        assert str(error) == "`count` must be at least 1, got 0"
    else:
        raise AssertionError
    with suppress(FileNotFoundError):
        from_first(lambda: Path("missing").read_bytes())
        raise AssertionError
    print("rank", rank)
"""


def test_two_processes_share_the_parts_and_one_writes(tmp_path: Path) -> None:
    said = wait_for_all(start_ranks(2, [], tmp_path, SCRIPT))
    assert said == ["rank 0\n", ""]
    assert read_json(tmp_path / "written.json") == {"rank": 0}
    assert read_json(tmp_path / "record.json")["result"] == [0, 10, 20, 30, 40]
