"""The extension as a module: present where it should be, exact as it says, clear in refusing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dsmooth.kernels
from dsmooth import _extension
from dsmooth.commands import doctor
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import needs_extension

pytestmark = pytest.mark.quick


def test_the_extension_is_there_unless_the_build_left_it_out() -> None:
    """Its record says so; wherever it is missing for another reason, this fails."""
    info = _extension.build_info()
    assert info is not None, _extension.unavailable_reason()
    assert {"extension", "reason", "cuda", "python"} <= info.keys()
    assert not _extension.unavailable_reason() or info["reason"] == "DSMOOTH_EXTENSION=0"


@needs_extension
def test_the_record_is_of_this_extension() -> None:
    info = _extension.build_info()
    assert info["extension"] is True
    here, built = _extension.instruction_sets(), info["instruction_sets"]
    assert here == [name for name in built if name in here]
    assert here[0] == "generic"


def call(**changes: Any) -> None:
    """Call the loss of the extension."""
    shapes = {"x": (2, 1, 3, 4), "params": (2, 6, 3, 4), "state": (2, 4, 3, 4)}
    arguments = {name: ZEROS(shape) for name, shape in shapes.items()}
    arguments |= {"log_prob": ZEROS(2, 3, 4), "likelihood": "discretized", "atoms": False}
    _extension.extension().logistic_mixture(**arguments | {"smoothing_scale": 0.0} | changes)


ZEROS = torch.zeros
SHARED = ZEROS(2, 4, 3, 4)


@needs_extension
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": ZEROS(2, 3, 4)}, r"x must have shape \(\*, \*, \*, \*\), got \(2, 3, 4\)"),
        ({"params": ZEROS(2, 6, 3, 4).double()}, "params must be float32, got float64"),
        ({"atoms": True}, "params must have .*, and 256 for the atoms, got 6"),
        ({"atoms": True, "likelihood": "gaussian"}, "atoms need likelihood discretized and grey"),
        ({"likelihood": "gaussian"}, "smoothing_scale must be positive and finite, got 0"),
        ({"likelihood": "normal"}, "likelihood must be one of continuous, .*, got normal"),
        ({"params": ZEROS(2, 6, 3, 4, device="meta")}, "params must be a strided tensor on cpu or"),
        ({"threads": 2**31 - 1}, "threads must lie in 1 .. 4096, got 2147483647"),
        ({"state": ZEROS(1).expand(2, 4, 3, 4)}, "state must have no overlapping elements"),
        ({"state": SHARED, "log_prob": SHARED[:, 3]}, "log_prob must .* own, got that of state"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    refuses(message, call, **changes)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that `import dsmooth._C` fails; takes the build record to find there."""

    def hide(info: dict[str, Any] | None) -> None:
        monkeypatch.setitem(sys.modules, "dsmooth._C", None)
        monkeypatch.delattr(dsmooth, "_C", raising=False)
        monkeypatch.setattr(_extension, "build_info", lambda: info)
        _extension._load.cache_clear()

    yield hide
    _extension._load.cache_clear()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "source tree whose extension was never built.*pip install -e"),
        ({"extension": False, "reason": "DSMOOTH_EXTENSION=0"}, "--no-deps .*--force-reinstall"),
        ({"extension": True, "reason": None}, "cannot be loaded.*install again"),
    ],
)
def test_a_missing_extension_says_why(without_extension, info, message) -> None:
    without_extension(info)
    assert _extension.unavailable_reason() is not None
    refuses(message, _extension.extension, error=RuntimeError)


def doctor_output(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = doctor.doctor()
    return code, capsys.readouterr().out.splitlines()


def test_doctor_says_what_was_built_and_fails_if_the_self_test_does(monkeypatch, capsys) -> None:
    code, lines = doctor_output(capsys)
    assert code == 0
    assert lines[0].startswith(f"dsmooth {dsmooth.__version__} in ")
    assert lines[-2:] == [
        "self-test: Philox: ok",
        "self-test: loss and gradient, native against reference: ok",
    ]
    monkeypatch.setattr(doctor, "_PHILOX_ZERO", (1, 2, 3, 4))
    code, lines = doctor_output(capsys)
    assert code == 1
    assert "self-test: Philox: failed" in lines


def test_doctor_without_extension(without_extension: Any, capsys) -> None:
    cuda = {"images": [], "reason": "the extension was not built"}
    without_extension({"extension": False, "reason": "DSMOOTH_EXTENSION=0", "cuda": cuda})
    code, lines = doctor_output(capsys)
    assert code == 0
    assert any("extension: none:" in line and "(DSMOOTH_EXTENSION=0)" in line for line in lines)
    start = "CUDA sampler: packaged images: "
    assert any(line.startswith(f"{start}none (the extension was not built); ") for line in lines)
    packaged = {"images": ["bfloat16.sm_90.cubin"], "reason": None}
    without_extension({"extension": True, "reason": None, "cuda": packaged})
    lines = doctor_output(capsys)[1]
    assert any(line.startswith(f"{start}bfloat16.sm_90.cubin; compiler: ") for line in lines)


@needs_extension
def test_the_extension_shares_the_threads_of_torch() -> None:
    """One OpenMP runtime in the process: two would each start their own threads."""
    assert _extension.extension().has_openmp
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"/\S*libgomp\S*", maps))) == 1


def test_the_guard_refuses_the_kernels_under_their_bare_name(tmp_path: Path) -> None:
    (tmp_path / "kernels").symlink_to(dsmooth.kernels.__path__[0])
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "import dsmooth.kernels" in done.stderr
