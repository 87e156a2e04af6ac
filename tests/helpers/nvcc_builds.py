"""Results of nvcc, kept in the user's cache while compiler, arguments and sources are the same."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READ = (ROOT / "csrc", ROOT / "tests" / "ptx" / "host")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
LANGUAGES = {".h", ".cuh", ".cpp", ".cu"}
KEPT = {".so", ".o", ".ptx", ".cubin"}  # of what --keep leaves


def compiled(*arguments: str, sources: Sequence[Path]) -> Path:
    """Folder in which `nvcc ARGUMENTS SOURCES` ran, with its results and its words in said.txt.

    Results have relative paths in the arguments. Processes that ask at the same time wait for one
    build. Raises CalledProcessError.
    """
    version = subprocess.run([NVCC, "--version"], check=True, capture_output=True).stdout
    named = [path.name for path in sources]
    digest = hashlib.sha256(version + repr((arguments, named)).encode())
    for path in sorted(path for folder in READ for path in folder.rglob("*.*")):
        if path.suffix in LANGUAGES:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsmooth"
    folder = cache / f"nvcc-{digest.hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                command = [NVCC, *arguments, *map(str, sources)]
                done = subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
                result = Path(work) / "result"
                result.mkdir()
                (result / "said.txt").write_text(done.stderr)
                for path in Path(work).iterdir():
                    if path.suffix in KEPT:
                        path.rename(result / path.name)
                result.rename(folder)
    return folder
