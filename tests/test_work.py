"""Work in parts: the same values in any division, kept parts, progress."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from dsmooth import progress as progress_module
from dsmooth.machine import torch_threads
from dsmooth.progress import advance_to, portion, progress
from dsmooth.work import Record, batches, map_parts
from tests.helpers.data_makers import refuses
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
def test_a_kept_result_is_not_computed_again(tmp_path: Path) -> None:
    compute, path = Mock(return_value=3), tmp_path / "x.json"
    for _ in range(2):
        assert Record(path, {"of": "ones"}, int).obtain(compute) == 3
    compute.assert_called_once()
    refuses(r"x\.json does not fit: Expected `str`, got `int`", Record, path, {"of": "ones"}, str)


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
from pathlib import Path
from dsmooth.distributed import process_group
from dsmooth.fields import SettingError, check_number

from dsmooth.work import is_common

said = []
with process_group() as group:
    for call in (lambda: check_number("count", 0), lambda: Path("missing").read_bytes()):
        try:
            group.first(call)
        except (SettingError, FileNotFoundError) as error:
            said.append(str(error))
    said += [group.most([group.rank, -group.rank]), is_common(group.rank), is_common("x")]
print(*said)
"""


def test_an_error_of_the_first_process_is_every_ones(tmp_path: Path) -> None:
    words = "`count` must be at least 1, got 0 [Errno 2] No such file or directory: 'missing'"
    words += " [1, 0] False True\n"
    assert wait_for_all(start_ranks(2, [], tmp_path, SCRIPT)) == [words] * 2
