"""A cache of Triton's that is filled for another machine: what it carries, and that it serves."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "triton_cache.py"
# Forward and backward of the smallest network, from the first folder into the second, anew.
STEP = """
import runpy, sys
from pathlib import Path
from types import SimpleNamespace
root, script, packed = sys.argv[1:]
sys.path.append(root)
from benchmarks.networks import SMALL
tool = SimpleNamespace(**runpy.run_path(script))
print(tool.fill({"step": lambda: tool.step(SMALL, 2)}))
tool.pack(tool.CACHE, Path(packed))
"""


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.quick
def test_kernels_move_to_another_folder(tool: SimpleNamespace, tmp_path: Path) -> None:
    """With launchers, and without what a launch does not read."""
    old, new, packed = tmp_path / "old", tmp_path / "new", tmp_path / "packed.tar.xz"
    names = {"A/some_kernel.cubin", "A/some_kernel.json", "B/launcher.so"}
    left = {"A/some_kernel.ptx", "A/__grp__some_kernel.json"}
    for name in names | left:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(name)
    tool.pack(old, packed)
    shutil.rmtree(old)
    tool.unpack(packed, new)
    assert tool.files(new) == names
    listed = json.loads((new / "A" / "__grp__some_kernel.json").read_text())["child_paths"]
    assert {name: Path(path).read_text() for name, path in listed.items()} == {
        Path(name).name: name for name in names if name.startswith("A")
    }


@pytest.mark.quick
def test_kernels_of_another_triton_are_refused(
    tool: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    tool.pack(tmp_path / "old", tmp_path / "packed.tar.xz")
    monkeypatch.setattr("triton.runtime.cache.triton_key", lambda: "another")
    with pytest.raises(ValueError, match="another build of Triton"):
        tool.unpack(tmp_path / "packed.tar.xz", tmp_path / "new")


@pytest.mark.full
def test_a_step_on_a_cache_filled_before_compiles_nothing(
    tool: SimpleNamespace, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.tar.xz"
    command = [sys.executable, "-c", STEP, str(ROOT), str(SCRIPT), str(packed)]
    new = []
    for folder in (tmp_path / "old", tmp_path / "new"):
        if packed.exists():
            tool.unpack(packed, folder)
        environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        new.append(int(run.stdout.split()[-1]))
    assert new[0] > 20
    assert new[1] == 0
