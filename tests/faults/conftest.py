"""The extension that DSMOOTH_TEST_EXTENSION names takes the place of dsmooth's own."""

from __future__ import annotations

import importlib.util
import os
import sys

_path = os.environ.get("DSMOOTH_TEST_EXTENSION")
if _path:
    _spec = importlib.util.spec_from_file_location("dsmooth._C", _path)
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["dsmooth._C"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["dsmooth._C"])
