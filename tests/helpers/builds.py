"""Results of compilers, kept in the user's cache while their input is the same."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READ = (ROOT / "csrc", ROOT / "tests" / "ptx" / "host", ROOT / "tests" / "helpers")
CXX = shutil.which("c++") or shutil.which("g++")
# Not of a test that changes the variable.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsmooth"
LANGUAGES = {".h", ".c", ".cuh", ".cpp", ".cu"}


def library(name: str, *arguments: str, sources: Sequence[Path]) -> Path:
    """A shared library that the C++ compiler makes. Raises CalledProcessError."""

    def make(folder: Path) -> None:
        command = [str(CXX), *arguments, "-shared", "-fPIC", "-o", str(folder / name)]
        subprocess.run([*command, *map(str, sources)], check=True, capture_output=True, text=True)

    version = subprocess.run([str(CXX), "--version"], check=True, capture_output=True).stdout
    return kept(version + repr((name, arguments, [s.name for s in sources])).encode(), make) / name


def kept(key: bytes, make: Callable[[Path], None]) -> Path:
    """Folder that `make` has filled, for this key and the sources as they are.

    Processes that ask at the same time wait for one of them.
    """
    digest = hashlib.sha256(key)
    for path in sorted(path for folder in READ for path in folder.rglob("*.*")):
        if path.suffix in LANGUAGES:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = CACHE / f"test-{digest.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                result = Path(work) / "result"
                result.mkdir()
                make(result)
                result.rename(folder)
    return folder
