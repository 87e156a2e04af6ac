"""No wrong call ends the process, and none answers wrongly: see harness.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmooth import _extension
from tests.faults.harness import run_in_child

needs_extension = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
FILES = sorted(path.name for path in Path(__file__).parent.glob("wrong_*.py"))


@needs_extension
@pytest.mark.parametrize("name", FILES)
def test_wrong_calls(name: str, tmp_path: Path) -> None:
    print(run_in_child(name, tmp_path))
