"""Builds the native extension `dsmooth._C` with CMake and Ninja; the rest is in pyproject.toml.

The build needs no torch and no network. An environment variable steers it:

    DSMOOTH_CUDA=auto   (default) compile the sampler's kernel for GPUs if nvcc is found; without it
                        a machine with a GPU compiles the kernel at its first use
    DSMOOTH_CUDA=0      do not
    DSMOOTH_CUDA=1      do, or fail

    DSMOOTH_EXTENSION=0 without the extension: operations run in PyTorch, sampling is slow

DSMOOTH_REPOSITORY=https://github.com/OWNER/NAME names the repository: links of the README then lead
there, and so do those of the package's page on an index. Without it there are none.
CMAKE_ARGS adds arguments to CMake's, as for other packages.
Without a working C++20 compiler the build fails: pip would keep a wheel without the extension.
What was built, with what, and the reason of what was not, is written to `dsmooth/_build_info.json`;
`dsmooth doctor` prints it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_INFO = "_build_info.json"
IMAGES = Path("cuda", "images")  # in the folder dsmooth
PAPER_CODE = "Autoregressive-Modeling-with-Distribution-Smoothing"
COMPILER_HINT = (
    "apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora) or xcode-select --install "
    "(macOS) installs one; DSMOOTH_EXTENSION=0 leaves the extension out, and sampling then takes "
    "one forward pass per pixel"
)


class BuildError(SystemExit):
    """Stops the build with a message and no traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\ndsmooth: {message}\n")


class BuildExtension(build_ext):
    """build_ext whose one extension is made by csrc/CMakeLists.txt."""

    def run(self) -> None:
        super().run()
        if self.inplace:  # an editable install imports from the source tree
            package = ROOT / "dsmooth"
            if not self.get_output_path().is_file():
                for stale in package.glob("_C.*.so"):
                    stale.unlink()
            shutil.rmtree(package / IMAGES, ignore_errors=True)
            if (images := self.get_info_path().parent / IMAGES).is_dir():
                shutil.copytree(images, package / IMAGES)
            shutil.copyfile(self.get_info_path(), package / BUILD_INFO)

    def build_extension(self, ext: Extension) -> None:
        target = self.get_output_path()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build
        info = build_native(target, Path(self.build_temp).resolve() / "native")
        self.get_info_path().write_text(json.dumps(info, indent=2) + "\n")

    def get_output_path(self) -> Path:
        return Path(self.build_lib).resolve() / self.get_ext_filename("dsmooth._C")

    def get_info_path(self) -> Path:
        return self.get_output_path().with_name(BUILD_INFO)

    def get_outputs(self) -> list[str]:
        info = self.get_info_path()
        paths = [*super().get_outputs(), str(info), *map(str, (info.parent / IMAGES).glob("*"))]
        return [path for path in paths if os.path.exists(path)]


def build_native(target: Path, build_dir: Path) -> dict[str, Any]:
    """Builds `target` and returns the build record. Raises BuildError where the user must act."""
    info: dict[str, Any] = {
        "extension": False,
        "reason": None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cuda": {"images": [], "reason": "the extension was not built"},
    }
    extension = os.environ.get("DSMOOTH_EXTENSION", "1") or "1"
    if extension not in ("0", "1"):
        raise BuildError(f"DSMOOTH_EXTENSION must be 0 or 1, got {extension!r}")
    if extension == "0":
        info["reason"] = "DSMOOTH_EXTENSION=0"
        return info
    cmake = find_tool("cmake", "CMAKE_BIN_DIR")
    ninja = find_tool("ninja", "BIN_DIR")
    shutil.rmtree(build_dir, ignore_errors=True)
    build_dir.mkdir(parents=True)
    command = [cmake, "-S", str(ROOT / "csrc"), "-B", str(build_dir), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_dir()}"]
    command += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}"]
    if archs := re.findall(r"-arch (\S+)", os.environ.get("ARCHFLAGS", "")):  # of macOS
        command += [f"-DCMAKE_OSX_ARCHITECTURES={';'.join(archs)}"]
    done = run([*command, *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
    if done.returncode != 0:
        raise BuildError(f"no working C++20 compiler: {complaint(done.stdout)}\n{COMPILER_HINT}")
    info["cuda"] = compile_images(target.parent / IMAGES)
    if run([cmake, "--build", str(build_dir)]).returncode != 0:
        raise BuildError("the extension did not compile (output above)")
    if not target.is_file():
        raise BuildError(f"CMake succeeded but did not write {target}")
    info.update(extension=True, **json.loads((build_dir / "build_facts.json").read_text()))
    say(f"built {target.name}")
    return info


def compile_images(folder: Path) -> dict[str, Any]:
    """Compile the kernel of the CUDA sampler into `folder`: the names, or why there are none.

    bfloat16, the type that a GPU draws in by default: machine code for two cards, and PTX for later
    ones. dsmooth/cuda/images.py compiles for any other card and for float32 at the first use.
    """
    shutil.rmtree(folder, ignore_errors=True)
    wish = os.environ.get("DSMOOTH_CUDA", "auto") or "auto"
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"DSMOOTH_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return {"images": [], "reason": "DSMOOTH_CUDA=0"}
    nvcc, cudacxx = find_nvcc(), os.environ.get("CUDACXX")
    reason = f"nvcc not found at CUDACXX={cudacxx}" if cudacxx else "nvcc not found"
    if nvcc is not None:
        folder.mkdir(parents=True)
        ptx = folder / "bfloat16.compute_80.ptx"
        source = ROOT / "csrc" / "sampler" / "cuda" / "sample.cu"
        compiles = [nvcc, "-std=c++20", "-DDSMOOTH_OPERAND=Bf16", "-ptx", "-arch", "compute_80"]
        commands = [[*compiles, str(source), "-o", str(ptx)]]
        for arch in ("sm_80", "sm_90"):
            cubin = folder / f"bfloat16.{arch}.cubin"
            commands.append([nvcc, "-cubin", "-arch", arch, str(ptx), "-o", str(cubin)])
        for command in commands:
            if (done := run(command)).returncode != 0:
                reason = f"{nvcc} failed: {' '.join(done.stdout.split())[:300] or 'no message'}"
                shutil.rmtree(folder)
                break
        else:
            return {"images": sorted(path.name for path in folder.iterdir()), "reason": None}
    if wish == "1":
        raise BuildError(f"DSMOOTH_CUDA=1, but {reason}: DSMOOTH_CUDA=0 builds without nvcc")
    return {"images": [], "reason": reason}


def find_tool(name: str, directory_attribute: str) -> str:
    """The tool of the build requirement of that name, else the one on PATH."""
    try:
        directory = getattr(__import__(name), directory_attribute)
        found = shutil.which(name, path=directory)
    except (ImportError, AttributeError):
        found = None
    found = found or shutil.which(name)
    if found is None:
        raise BuildError(f"{name} not found: pip install {name}, or drop --no-build-isolation")
    return found


def pybind11_dir() -> str:
    try:
        import pybind11
    except ImportError:
        raise BuildError(
            "pybind11 not found: pip install pybind11, or drop --no-build-isolation"
        ) from None
    return str(pybind11.get_cmake_dir())


def find_nvcc() -> str | None:
    """nvcc of CUDACXX, CUDA_HOME, PATH or /usr/local/cuda, in this order."""
    cudacxx = os.environ.get("CUDACXX")
    if cudacxx:
        return shutil.which(cudacxx)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [os.path.join(home, "bin") for home in homes if home]
    for path in [*candidates, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]:
        found = shutil.which("nvcc", path=path)
        if found:
            return found
    return None


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command, output to the screen (pip shows it with -v, and on failure) and returned."""
    say(shlex.join(command))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(done.stdout, flush=True)
    return done


def complaint(output: str) -> str:
    """The first error of a CMake log in one line: its text, not the place in a CMake file."""
    match = re.search(
        r"^CMake Error[^\n]*\n(.*?)(?:\n\n\S|\nCMake|\n-- |\Z)", output, re.MULTILINE | re.DOTALL
    )
    text = match.group(1) if match else output
    return " ".join(text.split())[:300] or "no message"


def readme(repository: str) -> str:
    """README.md, its links to files leading to the repository at this version's tag."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not repository:
        return text
    version = re.search(r'__version__ = "(.+)"', (ROOT / "dsmooth" / "_extension.py").read_text())
    assert version is not None
    tag = f"v{version[1]}"
    text = re.sub(r"\]\(((?!https?:)[^)]*\.(?:png|svg))\)", rf"]({repository}/raw/{tag}/\1)", text)
    return re.sub(r"\]\(((?!https?:|#)[^)]*)\)", rf"]({repository}/blob/{tag}/\1)", text)


def project_urls(repository: str) -> dict[str, str]:
    """Addresses that an index shows."""
    repository_urls = {
        "Repository": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
    }
    return {
        **(repository_urls if repository else {}),
        "Paper": "https://arxiv.org/abs/2103.15089",
        "Code of the paper": f"https://github.com/chenlin9/{PAPER_CODE}",
    }


def say(message: str) -> None:
    print(f"dsmooth: {message}", flush=True)


if __name__ == "__main__":
    # Top-level folders that are installed in the package; of csrc, the files that NVRTC compiles.
    elsewhere = {"dsmooth.kernels": "kernels", "dsmooth.csrc": "csrc"}
    repository = os.environ.get("DSMOOTH_REPOSITORY", "").rstrip("/")
    setup(
        long_description=readme(repository),
        long_description_content_type="text/markdown",
        project_urls=project_urls(repository),
        # optional: an extension that was not built is not copied into the source tree
        ext_modules=[Extension("dsmooth._C", sources=[], optional=True)],
        cmdclass={"build_ext": BuildExtension},
        packages=[*find_namespace_packages(include=["dsmooth", "dsmooth.*"]), *elsewhere],
        package_dir=elsewhere,
    )
