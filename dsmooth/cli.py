"""The command `dsmooth`: parses arguments and calls a verb; the verbs import torch."""

from __future__ import annotations

import inspect
import io
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_type_hints

import tyro
from tyro.conf import subcommand

from ._extension import __version__
from .commands import options as verbs
from .fields import SettingError, check, in_python, nearest
from .progress import lines_shown
from .text import escape_control

VERBS: Mapping[str, Any] = {
    "train": verbs.Train,
    "sample": verbs.Sample,
    "complete": verbs.Complete,
    "cluster": verbs.Cluster,
    "evaluate": {"bpd": verbs.BitsOptions, "fid": verbs.FrechetOptions},
    "probe": verbs.Probe,
    "reproduce": verbs.Reproduce,
    "doctor": verbs.Doctor,
}
# GOMP_SPINCOUNT, read when torch is loaded: libgomp's default of 300,000 spins for milliseconds and
# starves a shared machine (150 forward passes by two threads took 1.7 times as long).
SPINS = "10000"
# In errors of torch and of Python, which are bugs otherwise.
NO_MEMORY = ("can't allocate memory", "can't start new thread")
POSITIONAL = {"role", "folder", "samples"}
HELP_WIDTH = 80  # columns
ABOUT = """Autoregressive image modelling with distribution smoothing, made fast.

`dsmooth VERB --help` describes a verb, `dsmooth --version` prints the version, and `dsmooth
--tyro-print-completion SHELL` a script that lets bash, zsh or tcsh complete."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command with `args`, by default those of the process; returns its status.

    An error is printed in a line.
    """
    prepare_process()
    args = list(sys.argv[1:] if args is None else args)
    command: object = None
    try:
        command = parse(args)
        status = command if isinstance(command, int) else call(args[0], command)
        sys.stdout.flush()  # a full disk is an error, of the help too
    except BrokenPipeError:  # the reader of a pipe left
        status = 141
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        status = 130
    except Exception as error:
        line = explain(error, option_names(type(command)))
        if line is None or os.environ.get("DSMOOTH_TRACEBACK") == "1":
            traceback.print_exc()
        if line is not None:
            print(escape_control(f"dsmooth: error: {line}"), file=sys.stderr)
        status = 1
    try:
        sys.stdout.flush()
    except OSError:  # what a pipe or a full disk did not take must not fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def call(name: str, command: object) -> int:
    """Run a verb with its options; returns its status. It is imported now, and torch with it."""
    from .files import check_writable
    from .work import workers

    check(command)
    threads = command.execution.threads if hasattr(command, "execution") else None
    with lines_shown(), workers(threads):
        for path in getattr(command, "outputs", ()):
            check_writable(path)
        return getattr(import_module(f".commands.{name}", __package__), name)(command) or 0


def prepare_process() -> None:
    """Set the standard streams of this process, and the spinning of its threads."""
    if sys.stdout is None:  # it is closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the locale may lack a letter


def explain(error: Exception, options: Collection[str] = ()) -> str | None:
    """The line of an error for the user, which names the command's options; None for a bug."""
    if isinstance(error, SettingError):
        return error.text(partial(as_option, options=options))
    reason = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or any(words in reason for words in NO_MEMORY):
        return f"not enough memory: {reason}".rstrip(": ")
    known = isinstance(error, ValueError | ArithmeticError | OSError | ImportError)
    return str(error) if known else None


def as_option(name: str, value: object, options: Collection[str]) -> str:
    """An argument of an error as the command has it: an option as typed, else as Python has it."""
    if name not in options:
        return in_python(name, value)
    values = [] if value is None or value is True else value if isinstance(value, list) else [value]
    return shlex.join([as_flag(name), *map(str, values)])


def as_flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def option_names(kind: type) -> set[str]:
    """The names in Python of a verb's options."""
    names: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        is_group = isinstance(hint, type) and is_dataclass(hint)
        names |= option_names(hint) if is_group else {name}
    return names - POSITIONAL


def parse(args: Sequence[str]) -> object:
    """The verb's options that the arguments mean; or the status, after help or an error."""
    if args[:1] == ["--version"]:
        print(f"dsmooth {__version__}")
        return 0
    prog, kind, rest = "dsmooth", cast(Any, VERBS), list(args)
    while isinstance(kind, dict) and rest and rest[0] in kind:
        prog, kind, rest = f"{prog} {rest[0]}", kind[rest[0]], rest[1:]
    if isinstance(kind, dict):  # help, a completion, or an error
        return _typed(_union(VERBS), args, prog="dsmooth", description=_wrapped(ABOUT))
    names = {as_flag(name) for name in option_names(kind)}
    for word in rest:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in {*names, "--help"}:
            line = f"dsmooth: error: {prog} has no option {flag}{nearest(flag, names)}"
            print(escape_control(line), file=sys.stderr)
            return 2
    config = (tyro.conf.HelptextFromCommentsOff,)
    return _typed(kind, rest, prog=prog, description=_about(kind), config=config)


def _typed(kind: Any, args: Sequence[str], **words: Any) -> object:
    """The options that arguments mean to tyro; or the status, after help or an error."""
    harmless = [*map(escape_control, args)]
    is_harmless = harmless == [*args]
    try:
        return _at_home(tyro.cli(kind, args=args, console_outputs=is_harmless, **words))
    except SystemExit as left:  # an error repeats the arguments
        return int(left.code or 0) if is_harmless else _typed(kind, harmless, **words)


def _at_home(options: Any) -> Any:
    """Options with the home folder in place of ~ in their paths."""
    if isinstance(options, Path):
        return Path(os.path.expanduser(options))
    if isinstance(options, tuple):
        return tuple(map(_at_home, options))
    if is_dataclass(options) and not isinstance(options, type):
        return replace(options, **{name: _at_home(x) for name, x in vars(options).items()})
    return options


def _union(kinds: Mapping[str, Any]) -> Any:
    """One type of several verbs, by their names, as tyro takes it."""
    members = []
    for name, kind in kinds.items():
        group = isinstance(kind, dict)
        about = "Measure models and samples." if group else _about(kind).strip().partition("\n")[0]
        kind = _union(kind) if group else kind
        members.append(Annotated[kind, subcommand(name, description=about)])
    # Union, because the members are known when the program runs: `|` cannot join them.
    return Union[tuple(members)]  # noqa: UP007


def _about(kind: type) -> str:
    """The docstring of a verb's options; python -OO has none, and dataclasses make one up."""
    return _wrapped(kind.__doc__ or "") if __doc__ else ""


def _wrapped(text: str) -> str:
    """A text's paragraphs in lines of the width of help, which tyro joins at the margin."""
    wrapper = textwrap.TextWrapper(HELP_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(map(wrapper.fill, inspect.cleandoc(text).split("\n\n")))
