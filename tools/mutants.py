"""python tools/mutants.py [--check] [ROOM or FILE ...]: which changes of sources do tests notice?

Each line of mutants.txt changes one place of a file. In a copy of the checkout, with that change
alone, the tests of its heading, of the default tier, must fail. Nothing is learned where they fail
without a change. C++ is built anew for each change. Prints every mutant and the sums by room.

With --check nothing runs: each place must be there once, and each name among the tests.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600  # after which tests that a change keeps from ending have noticed it
# Headings: room, file, tests, and the names among them that `-k` takes. Below each, changes of the
# file: old => new, where "~" is nothing.
TABLE = Path(__file__).with_suffix(".txt")
# Most tests import these, beside the package: here, not in every child.
IMPORTED = ("torch", "torch.func", "jinja2", "numpy", "PIL.Image", "rich", "tyro")
PACKAGE = ("dsmooth.cli", "dsmooth.pair", "dsmooth.training", "dsmooth.evaluate", "torch._dynamo")
UNKNOWN = 99


class Mutant(NamedTuple):
    room: str
    file: str
    tests: tuple[str, ...]
    names: str
    old: str
    new: str


def mutants(chosen: list[str]) -> Iterator[Mutant]:
    room = file = names = ""
    tests: tuple[str, ...] = ()
    for line in filter(None, TABLE.read_text().splitlines()):
        if line.startswith("# "):
            room, file, of, names = line[2:].split(" | ")
            tests = tuple(of.split())
        elif not chosen or {room, file} & {*chosen}:
            old, new = (part.replace("\\n", "\n") for part in line.split(" => "))
            yield Mutant(room, file, tests, names, old, new.strip("~"))


def faults(mutant: Mutant) -> Iterator[str]:
    """Why a line of the table tells nothing."""
    absent = [file for file in (mutant.file, *mutant.tests) if not (ROOT / file).exists()]
    if absent:
        yield f"there is no {absent[0]}"
        return
    count = (ROOT / mutant.file).read_text().count(mutant.old)
    if count != 1:
        yield f"{mutant.file} has {count} times: {mutant.old!r}"
    texts = "".join((ROOT / file).read_text() for file in mutant.tests)
    for name in mutant.names.split(" or "):
        if not re.search(rf"def \w*{name}|^from tests\.test_", texts, re.MULTILINE):
            yield f"{' '.join(mutant.tests)}: no test has {name} in its name"


def functions(code: CodeType) -> tuple[object, dict[str, CodeType]]:
    """The functions of a module or a class by their full names, and all that stands around them."""
    found: dict[str, CodeType] = {}
    around: list[object] = [code.co_code, code.co_names]
    for value in code.co_consts:
        if not isinstance(value, CodeType):
            around.append(value)
        elif value.co_flags & inspect.CO_NEWLOCALS:
            found[value.co_qualname] = value
            around.append(value.co_qualname)
        else:  # the body of a class
            inner, members = functions(value)
            around.append(inner)
            found |= members
    return around, found


def put(path: Path, old: str, new: str) -> bool:
    """Give the functions of an imported module their changed code; False if more has changed."""
    (around, before), (others, after) = (
        functions(compile(source, str(path), "exec")) for source in (old, new)
    )
    if around != others or before.keys() != after.keys():
        return False
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(path):
            code = after.get(function.__code__.co_qualname)
            if code is not None and code != function.__code__:
                function.__code__ = code
    return True


def run(copy: Path, mutant: Mutant, plugin: object = None) -> int:
    """Exit status of pytest in the copy, in silence."""
    import pytest

    os.chdir(copy)
    if mutant.tests[0].startswith("tests/interpreted"):
        os.environ["TRITON_INTERPRET"] = "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider"]
    plugins = [plugin] if plugin else []
    return pytest.main([*options, *mutant.tests, "-k", mutant.names], plugins)


def status_of(work: Callable[[], int], seconds: int = 0) -> int:
    """The result of a fork of this process, which has so many seconds for it, or any."""
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        try:
            os._exit(work())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build(copy: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)


@contextmanager
def changed(copy: Path, mutant: Mutant) -> Iterator[tuple[str, str]]:
    """Inside the block the file of the copy is changed; gives its text before and after."""
    path = copy / mutant.file
    source = path.read_text()
    native = mutant.file.startswith("csrc/")
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        if native:
            build(copy)
        yield source, path.read_text()
    finally:
        path.write_text(source)
        if native:
            build(copy)


class Judge:
    """A plugin of pytest: runs what was collected without a change, then in forks with each.

    tell: takes a mutant and its word; none for one that cannot be made of imported functions.
    """

    def __init__(self, copy: Path, every: list[Mutant], tell: Callable[[Mutant, str], None]):
        self.copy, self.every, self.tell = copy, every, tell

    def pytest_runtestloop(self, session: Any) -> bool:
        from _pytest.main import pytest_runtestloop

        def tests() -> int:
            with suppress(session.Failed):
                pytest_runtestloop(session)
            return min(session.testsfailed, 1)

        sound = session.items and status_of(tests, SECONDS) == 0
        for mutant in self.every:
            with changed(self.copy, mutant) as (before, after):

                def work(before: str = before, after: str = after, m: Mutant = mutant) -> int:
                    return tests() if put(self.copy / m.file, before, after) else UNKNOWN

                status = status_of(work, SECONDS) if sound else 0
            if status != UNKNOWN:
                self.tell(mutant, "unjudged" if not sound else "killed" if status else "SURVIVED")
        return True


def judge_imported(copy: Path, every: list[Mutant], tell: Callable[[Mutant, str], None]) -> None:
    """The mutants that a process with the package imported can judge; tests are collected once."""
    for _, group in itertools.groupby(every, lambda mutant: (mutant.tests, mutant.names)):
        some = list(group)
        status_of(partial(run, copy, some[0], Judge(copy, some, tell)))


def judge_anew(copy: Path, every: list[Mutant], tell: Callable[[Mutant, str], None]) -> None:
    """Each by a process that imports the package."""
    sound: dict[tuple[object, ...], int] = {}
    for mutant in every:
        judges = (mutant.tests, mutant.names)
        if judges not in sound:
            sound[judges] = status_of(partial(run, copy, mutant), SECONDS)
        with changed(copy, mutant):
            work = partial(run, copy, mutant)
            status = 0 if sound[judges] else status_of(work, SECONDS)
        tell(mutant, "unjudged" if sound[judges] else "killed" if status else "SURVIVED")


def main(*arguments: str) -> None:
    every = list(mutants([word for word in arguments if word != "--check"]))
    wrong = sorted({fault for mutant in every for fault in faults(mutant)})
    if wrong or "--check" in arguments:
        sys.exit("\n".join(wrong) or None)
    for name in IMPORTED:
        importlib.import_module(name)
    # Beside the checkout, so that a compiler's cache knows the files.
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        copy, told = Path(folder) / "copy", Path(folder) / "told"
        unused = shutil.ignore_patterns(".git", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=unused)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
        told.touch()

        def tell(mutant: Mutant, word: str) -> None:
            seconds = time.monotonic() - started
            line = f"{word:8} {seconds:5.0f} s  {mutant.file}: {mutant.old!r}"
            print(line, file=screen, flush=True)
            with told.open("a") as file:
                file.write(f"{every.index(mutant)} {word}\n")

        def words() -> dict[Mutant, str]:
            found = (line.split() for line in told.read_text().splitlines())
            return {every[int(number)]: word for number, word in found}

        def imported() -> int:
            os.chdir(copy)
            for name in PACKAGE:
                importlib.import_module(name)
            judge_imported(copy, [m for m in every if m.file.startswith("dsmooth/")], tell)
            return 0

        started, screen = time.monotonic(), os.fdopen(os.dup(1), "w")  # pytest is silenced
        status_of(imported)
        judge_anew(copy, [mutant for mutant in every if mutant not in words()], tell)
        made = Counter(m.room for m, word in words().items() if word != "unjudged")
        killed = Counter(m.room for m, word in words().items() if word == "killed")
    for room, count in made.items():
        print(f"{room}: {killed[room]} of {count}")
    print(f"all: {killed.total()} of {made.total()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
