"""No wrong call ends the process, and none answers wrongly: see harness.py.

With DSMOOTH_SANITIZED, the folder of an extension built with AddressSanitizer (csrc/tests/run.sh
builds one), the calls are made with that.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dsmooth import _extension
from tests.faults.harness import run_in_child
from tests.helpers.gated_cases import needs_extension

FILES = sorted(path.name for path in Path(__file__).parent.glob("wrong_*.py"))
# In builds with CUDA alone; their wrong calls are made on a device (test_cached_sampler_cuda.py).
ON_A_DEVICE = {
    "_C.Partition.__init__",
    "_C.CudaSampler.__init__",
    *(f"_C.CudaSampler.{name}" for name in ("bytes_per_image", "launches", "sample", "partition")),
    *(f"_C.CudaSampler.{name}" for name in ("weight_words", "workspace_words", "write_weights")),
}


def sanitized() -> Path | None:
    """The extension to use instead of the installed one."""
    folder = os.environ.get("DSMOOTH_SANITIZED")
    if folder is None:
        return None
    (path,) = Path(folder).glob("_C.*.so")
    return path


@pytest.mark.long
@needs_extension
@pytest.mark.budget(60)
@pytest.mark.parametrize(
    ("names", "part"),
    [(FILES, 12), *(pytest.param([name], 1, marks=pytest.mark.full) for name in FILES)],
)
def test_wrong_calls(names: list[str], part: int, tmp_path: Path) -> None:
    """With one call in twelve, and with all."""
    print(run_in_child(names, tmp_path, sanitized(), part))


def functions_of_extension(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if not isinstance(value, type):
            if callable(value):
                yield f"_C.{name}"
            continue
        for member in vars(value):
            is_own = not member.startswith("_") or member == "__init__"
            if is_own and "pybind11" not in member:
                yield f"_C.{name}.{member}"


@needs_extension
def test_every_function_is_called_wrongly() -> None:
    modules = [importlib.import_module(f"tests.faults.{Path(name).stem}") for name in FILES]
    tried = {target.function for module in modules for target in module.TARGETS}
    for module in modules:
        tried |= set(getattr(module, "ALSO", ()))
    functions = set(functions_of_extension(_extension.extension()))
    assert functions - tried - ON_A_DEVICE == set()
    assert {name for name in tried if name.startswith("_C.")} <= functions
