"""The sdist and the wheels of a release in dist/: python tools/release.py 3.10 3.11 3.12 3.13

A wheel for each version whose interpreter is on PATH, tagged manylinux_2_28: the compiler is this
machine's. Where nvcc is found the wheels have machine code for GPUs (DSMOOTH_CUDA=0: without). The
module is linked against the symbols of glibc 2.28, which the package ziglang has, and a static
libstdc++. auditwheel must agree to the tag, and twine to the metadata. `--try` installs each wheel
into a new virtual environment that has torch and no compiler, and draws images.
With DSMOOTH_REPOSITORY, an address, links of the README lead there.

Needed: pip install auditwheel build twine wheel ziglang==0.17.1. Hosted, cibuildwheel does the same
in the image of manylinux (pyproject.toml).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "release"
DIST = ROOT / "dist"
TAG = "manylinux_2_28_x86_64"


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command, which is printed if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{command[0]} failed: {command}")
    return done.stdout


def old_glibc() -> str:
    """Options of the linker, by which a module asks for nothing newer than glibc 2.28."""
    libraries = WORK / "glibc"
    shutil.rmtree(libraries, ignore_errors=True)
    libraries.mkdir(parents=True)
    (WORK / "empty.c").write_text("int main(void) { return 0; }\n")
    cache = WORK / "zig"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.28"]
    run(*zig, WORK / "empty.c", "-o", WORK / "empty", ZIG_GLOBAL_CACHE_DIR=str(cache))
    for library in cache.glob("o/*/lib*.so.*"):
        shutil.copy(library, libraries)
    rest = run("gcc", "-print-file-name=libc_nonshared.a").strip()
    others = " ".join(str(libraries / f"lib{x}") for x in ("pthread.so.0", "dl.so.2", "rt.so.1"))
    loader = libraries / "libld.so.2"
    group = f"{libraries / 'libc.so.6'} {rest} AS_NEEDED ( {others} {loader} )"
    (libraries / "libc.so").write_text(f"GROUP ( {group} )\n")
    (libraries / "libm.so").symlink_to("libm.so.6")
    newer = WORK / "glibc_2_28.o"
    run("gcc", "-O2", "-fPIC", "-c", ROOT / "tools" / "glibc_2_28.c", "-o", newer)
    return f"-L{libraries} {newer} -static-libstdc++ -Wl,--exclude-libs,ALL"


def build(version: str, linking: str) -> Path:
    """The wheel of one version of Python, with the tag that auditwheel agrees to."""
    python = shutil.which(f"python{version}")
    if python is None:
        raise SystemExit(f"python{version} is not on PATH")
    made = WORK / f"wheel-{version}"
    shutil.rmtree(made, ignore_errors=True)
    asked = os.environ.get("CMAKE_ARGS", "")
    arguments = f'{asked} -DCMAKE_MODULE_LINKER_FLAGS="{linking}"'
    # In this tree: a compiler's cache sees the same paths for each version.
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", made, ROOT, CMAKE_ARGS=arguments)
    (wheel,) = made.glob("*.whl")
    run(sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={TAG}", wheel)
    (wheel,) = made.glob("*.whl")
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    # It says "this constrains the platform tag to", of the oldest glibc that serves.
    constrained = re.search(r'tag to\s+"manylinux_2_(\d+)_x86_64"', shown)
    if constrained is None or int(constrained[1]) > 28:
        raise SystemExit(shown)
    return Path(shutil.copy(wheel, DIST))


DRAW = """
import dsmooth
from dsmooth import _extension
assert _extension.extension().has_openmp
assert dsmooth.SmoothedPair.from_pretrained("mnist").sample(2, seed=0).isfinite().all()
"""


def try_out(version: str, wheel: Path) -> None:
    """Install a wheel where torch is installed and no compiler is; it must draw."""
    place = WORK / f"try-{version}"
    shutil.rmtree(place, ignore_errors=True)
    run(f"python{version}", "-m", "venv", place)
    bare = {"PATH": str(place / "bin")}
    pip = place / "bin" / "pip"
    run(pip, "install", "torch", "torchvision", **bare)
    run(pip, "install", wheel, **bare)
    run(place / "bin" / "python", "-I", "-c", DRAW, **bare)  # -I: not the package of this tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="of Python, such as 3.11")
    parser.add_argument("--try", dest="tries", action="store_true", help="install each, and draw")
    options = parser.parse_args()
    DIST.mkdir(exist_ok=True)
    print("sdist ...", flush=True)
    run(sys.executable, "-m", "build", "--sdist", "-o", DIST, ROOT)
    made = list(DIST.glob("*.tar.gz"))
    if options.versions:
        print("libraries of glibc 2.28 ...", flush=True)
    linking = old_glibc() if options.versions else ""
    for version in options.versions:
        print(f"wheel of Python {version}: compile, auditwheel ...", flush=True)
        wheel = build(version, linking)
        made.append(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
        if options.tries:
            print(f"trying {wheel.name} without a compiler ...", flush=True)
            try_out(version, wheel)
            print("installed, and draws", flush=True)
    print("twine check ...", flush=True)
    run(sys.executable, "-m", "twine", "check", "--strict", *made)


if __name__ == "__main__":
    main()
