"""Test the tests: python tools/mutants.py [--check] [PART or FILE ...]

Each line of mutants.txt changes one place of a file. With this change the tests under its heading
must fail, in a copy of the checkout; a mutant is "unjudged" if they fail without it. C++ is rebuilt
for each change. Prints every mutant and the sums by part.

--check runs nothing: it checks that each place occurs once and that the tests exist.
"""

from __future__ import annotations

import compileall
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600  # tests that take longer have noticed the change
# A heading has a part, a file, its tests and an expression for -k. The lines below are changes of
# the file: old => new, where "~" is an empty text.
TABLE = Path(__file__).with_suffix(".txt")
# Imported once, in the parent, because most tests need them.
IMPORTED = ("torch", "torch.func", "torch._dynamo", "jinja2", "numpy", "PIL.Image", "rich", "tyro")


class Mutant(NamedTuple):
    part: str
    file: str
    tests: tuple[str, ...]
    names: str
    old: str
    new: str


def mutants(chosen: list[str]) -> Iterator[Mutant]:
    part = file = names = ""
    tests: tuple[str, ...] = ()
    for line in filter(None, TABLE.read_text().splitlines()):
        if line.startswith("# "):
            part, file, of, names = line[2:].split(" | ")
            tests = tuple(of.split())
        elif not chosen or {part, file} & {*chosen}:
            old, new = (text.replace("\\n", "\n") for text in line.split(" => "))
            yield Mutant(part, file, tests, names, old, new.strip("~"))


def faults(mutant: Mutant) -> Iterator[str]:
    """Errors in a line of the table."""
    absent = [file for file in (mutant.file, *mutant.tests) if not (ROOT / file).exists()]
    if absent:
        yield f"{absent[0]} does not exist"
        return
    count = (ROOT / mutant.file).read_text().count(mutant.old)
    if count != 1:
        yield f"{mutant.file} has {count} times: {mutant.old!r}"
    texts = "".join((ROOT / file).read_text() for file in mutant.tests)
    for name in mutant.names.split(" or "):
        if not re.search(rf"def \w*{name}|^from tests\.\w+\.test_", texts, re.MULTILINE):
            yield f"{' '.join(mutant.tests)}: no test has {name} in its name"


def run(copy: Path, tests: tuple[str, ...], names: str) -> int:
    """Run pytest in the copy without output; returns its exit status."""
    import pytest

    os.chdir(copy)
    if tests[0].startswith("tests/kernels/interpreted"):
        os.environ["TRITON_INTERPRET"] = "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests, "-k", names])


def passes(copy: Path, tests: tuple[str, ...], names: str) -> bool:
    """Whether the tests pass in time, in a fork of this process."""
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        try:
            os._exit(run(copy, tests, names))
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


pass_unchanged = cache(passes)


def build(copy: Path, file: str) -> None:
    """Build the extension, if the file belongs to it."""
    if file.startswith("csrc/"):
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)


def judge(copy: Path, mutant: Mutant) -> str:
    """The verdict on a mutant."""
    judges = copy, mutant.tests, mutant.names
    if not pass_unchanged(*judges):
        return "unjudged"
    path = copy / mutant.file
    source = path.read_text()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        build(copy, mutant.file)
        return "SURVIVED" if passes(*judges) else "killed"
    finally:
        path.write_text(source)
        build(copy, mutant.file)


def main(*arguments: str) -> None:
    chosen = list(mutants([word for word in arguments if word != "--check"]))
    wrong = sorted({fault for mutant in chosen for fault in faults(mutant)})
    if wrong or "--check" in arguments:
        sys.exit("\n".join(wrong) or None)
    for name in IMPORTED:
        importlib.import_module(name)
    made, killed = Counter[str](), Counter[str]()
    # Next to the checkout, so that the compiler's cache recognises the files.
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        copy = Path(folder) / "copy"
        unused = shutil.ignore_patterns(".git", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=unused)
        # Bytecode of changed sources must not outlive them.
        compileall.compile_dir(copy / "dsmooth", quiet=2)
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
        started = time.monotonic()
        for mutant in chosen:
            word = judge(copy, mutant)
            seconds = time.monotonic() - started
            print(f"{word:8} {seconds:5.0f} s  {mutant.file}: {mutant.old!r}", flush=True)
            made[mutant.part] += word != "unjudged"
            killed[mutant.part] += word == "killed"
    for part, count in made.items():
        print(f"{part}: {killed[part]} of {count}")
    print(f"all: {killed.total()} of {made.total()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
