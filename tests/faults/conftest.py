"""Every test has a budget of CPU seconds, its own and those of its processes: 30, or those of its
mark `budget`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def budget(request: pytest.FixtureRequest) -> Iterator[None]:
    mark = request.node.get_closest_marker("budget")
    allowed = mark.args[0] if mark else 30
    before = sum(os.times()[:4])
    yield
    used = sum(os.times()[:4]) - before
    print(f"{used:.1f} CPU seconds")
    assert used <= allowed, f"{used:.1f} CPU seconds, more than the budget of {allowed}"
