"""No wrong call ends the process, and none answers wrongly: see harness.py.

`csrc/tests/run.sh BUILD python tests/faults/test_wrong_calls.py` makes the calls with an extension
built with AddressSanitizer.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dsmooth import _extension
from tests.faults.harness import NOTE
from tests.helpers.gated_cases import needs_extension

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 60  # of a process, whatever else the machine does
FILES = sorted(path.name for path in Path(__file__).parent.glob("wrong_*.py"))
# For tensors on a device; their wrong calls are made there (test_cached_sampler_cuda.py).
ON_A_DEVICE = {
    *(f"_C.CudaPlan.{name}" for name in ("__init__", "blocks", "workspace_words", "launches")),
    *(
        f"_C.CudaSampler.{name}"
        for name in ("__init__", "bytes_per_image", "plan", "argument", "write_weights")
    ),
    *(f"_C.CudaSampler.{name}" for name in ("weight_words", "lanes", "shared_bytes")),
}


@pytest.mark.long
@needs_extension
@pytest.mark.budget(60)
@pytest.mark.parametrize(
    ("names", "part"),
    [(FILES, 24), *(pytest.param([name], 1, marks=pytest.mark.full) for name in FILES)],
)
def test_wrong_calls(names: list[str], part: int, tmp_path: Path) -> None:
    """With one call in 24, and with all, by pytest in a process of its own."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-s", "-n0"),
        *("-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")),
        *(str(ROOT / "tests" / "faults" / name) for name in names),
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    env |= {"DSMOOTH_WRONG_CALLS_PART": str(part), "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        command,
        cwd=tmp_path,  # not the source tree: an installed dsmooth comes first
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS)),
        check=False,
    )
    written = tmp_path / NOTE
    call = written.read_text() if written.exists() else "no call"
    assert done.returncode == 0, f"{call}: exit status {done.returncode}\n{done.stdout[-12000:]}"
    print(done.stdout)


@needs_extension
def test_every_function_is_called_wrongly() -> None:
    modules = [importlib.import_module(f"tests.faults.{Path(name).stem}") for name in FILES]
    tried = {re.split("[, ]", target.name)[0] for module in modules for target in module.TARGETS}
    for module in modules:
        tried |= set(getattr(module, "ALSO", ()))
    functions = set()
    for name, value in vars(_extension.extension()).items():
        if isinstance(value, type):
            members = {m for m in vars(value) if not m.startswith("_") or m == "__init__"}
            functions |= {f"_C.{name}.{m}" for m in members if "pybind11" not in m}
        elif callable(value):
            functions.add(f"_C.{name}")
    assert functions - tried - ON_A_DEVICE == set()
    assert {name for name in tried if name.startswith("_C.")} <= functions
