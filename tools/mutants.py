"""python tools/mutants.py [ROOM ...]: which changes of the sources do the tests notice?

Each line of mutants.txt changes one place of a file. In a copy of the checkout, with that change
alone, the tests of its heading, of the default tier, must fail. Tests that fail without a change
stop the program: nothing would be learned of them. C++ is built anew for each change. Prints every
mutant and the sums by room.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600  # after which tests that a change keeps from ending have noticed it
# Headings: room, file, tests, and the names among them that `-k` takes. Below each, changes of the
# file: old => new, where "~" is nothing.
TABLE = Path(__file__).with_suffix(".txt")


class Mutant(NamedTuple):
    room: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str


def mutants(rooms: list[str]) -> Iterator[Mutant]:
    room = file = ""
    tests: tuple[str, ...] = ()
    for line in filter(None, TABLE.read_text().splitlines()):
        if line.startswith("# "):
            room, file, *files, names = line[2:].split(" | ")
            tests = (*files[0].split(), "-k", names)
        elif not rooms or room in rooms:
            old, new = (part.replace("\\n", "\n") for part in line.split(" => "))
            yield Mutant(room, file, tests, old, new.strip("~"))


def passes(copy: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass in the copy, by a fork of this process, which has imported torch."""
    child = os.fork()
    if not child:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.alarm(SECONDS)
        import pytest

        os._exit(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (4, 5):
        sys.exit(f"no tests: {' '.join(tests)}")
    return status == 0


def build(copy: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)


def main(rooms: list[str]) -> None:
    import torch  # noqa: F401 - here, not in every child

    sound: set[tuple[str, ...]] = set()
    made: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    # Beside the checkout, so that a compiler's cache knows the files.
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        copy = Path(folder) / "copy"
        unused = shutil.ignore_patterns(".git", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=unused)
        for mutant in mutants(rooms):
            path = copy / mutant.file
            source = path.read_text()
            if source.count(mutant.old) != 1:
                sys.exit(f"{mutant.file} has {source.count(mutant.old)} times: {mutant.old}")
            if mutant.tests not in sound and not passes(copy, mutant.tests):
                sys.exit(f"fail without a change: {' '.join(mutant.tests)}")
            sound.add(mutant.tests)
            native = mutant.file.startswith("csrc/")
            path.write_text(source.replace(mutant.old, mutant.new))
            if native:
                build(copy)
            started = time.monotonic()
            lives = passes(copy, mutant.tests)
            path.write_text(source)
            if native:
                build(copy)
            made[mutant.room] += 1
            killed[mutant.room] += not lives
            word = "SURVIVED" if lives else "killed"
            seconds = time.monotonic() - started
            print(f"{word:8} {seconds:4.0f} s  {mutant.file}: {mutant.old!r}", flush=True)
    for room, count in made.items():
        print(f"{room}: {killed[room]} of {count}")
    print(f"all: {killed.total()} of {made.total()}")


if __name__ == "__main__":
    main(sys.argv[1:])
