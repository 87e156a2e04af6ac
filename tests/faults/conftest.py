"""The extension that DSMOOTH_TEST_EXTENSION names takes the place of dsmooth's own.

Every test has a budget of CPU seconds, its own and those of its processes: 30, or those of its mark
`budget`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest

_path = os.environ.get("DSMOOTH_TEST_EXTENSION")
if _path:
    _spec = importlib.util.spec_from_file_location("dsmooth._C", _path)
    sys.modules["dsmooth._C"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["dsmooth._C"])


@pytest.fixture(autouse=True)
def budget(request: pytest.FixtureRequest) -> Iterator[None]:
    mark = request.node.get_closest_marker("budget")
    allowed = mark.args[0] if mark else 30
    before = sum(os.times()[:4])
    yield
    used = sum(os.times()[:4]) - before
    print(f"{used:.1f} CPU seconds")
    assert used <= allowed, f"{used:.1f} CPU seconds, more than the budget of {allowed}"
