"""The command `dsmooth`: parses arguments and calls a verb; the verbs import torch."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Annotated, Any, Union, cast, get_args, get_type_hints

import tyro
from tyro.conf import subcommand

from ._version import __version__
from .commands import options
from .commands.options import DEFAULT_PRESET, Train, TypedModel, TypedSettings
from .config import Role
from .distributed import rank_and_size
from .machine import keep_freed_memory
from .presets import PRESETS, preset
from .progress import lines_shown, silence
from .text import escape_control

VERBS: Mapping[str, Any] = {
    "train": Train,
    "sample": options.Sample,
    "complete": options.Complete,
    "cluster": options.Cluster,
    "evaluate": {
        "bpd": options.BitsOptions,
        "fid": options.FrechetOptions,
        "classify": options.ClassifyOptions,
    },
    "probe": options.Probe,
    "reproduce": options.Reproduce,
    "doctor": options.Doctor,
}
# Options of other programs, and ours for the same.
HINTS = {
    "--lr": "--learning-rate",
    "--epochs": "--images, training images to visit with repeats counted",
    "--n": "--count",
    "--num-samples": "--count",
    "--output": "--out",
    "--batch": "--batch-size",
    "--num-classes": "--n-classes",
}
# Errors of a machine that has not enough of something.
EXHAUSTED = ("can't start new thread", "can't allocate memory", "out of memory")
# GOMP_SPINCOUNT, read when torch is loaded: libgomp's default of 300,000 spins for milliseconds and
# starves a shared machine (150 forward passes by two threads took 1.7 times as long).
SPINS = "10000"
POSITIONAL = ("role", "models", "samples")
HELP_WIDTH = 80
ABOUT = """Autoregressive image modelling with distribution smoothing, made fast.

`dsmooth VERB --help` describes a verb, `dsmooth --version` prints the version, and `dsmooth
--tyro-print-completion SHELL` a script that lets bash, zsh or tcsh complete."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command with `args`, by default those of the process; exits with its status."""
    if sys.stdout is None:  # it is closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the locale may lack a letter
    try:
        rank, size = rank_and_size()
    except ValueError as error:
        sys.exit(_fail(str(error)))
    with silence() if rank > 0 else contextlib.nullcontext():
        status = _call(list(sys.argv[1:] if args is None else args))
    if size > 1 or status < 0:
        # Python's own way out waits for threads at work, and a thread of torch's process group may
        # abort it.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(abs(status))
    sys.exit(status)


def _call(args: list[str]) -> int:
    """Run the command; an error is printed in a line.

    Returns the exit status, negative where the process must leave at once.
    """
    names: set[str] = set()
    try:
        command = parse(args)
        names = option_names(type(command))
        quiet = command.execution.quiet if hasattr(command, "execution") else False
        # With --quiet `evaluate` still prints the numbers of --out -, and silences the rest itself.
        silent = silence() if quiet and args[0] != "evaluate" else contextlib.nullcontext()
        with lines_shown(logging.ERROR if quiet else logging.INFO), silent:
            # A verb is imported when it is called, and torch with it.
            verb = getattr(import_module(f".commands.{args[0]}", __package__), args[0])
            return verb(command) or 0
    except BrokenPipeError:  # the reader of a pipe left
        return 141
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        return -130  # at once
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        if os.environ.get("DSMOOTH_TRACEBACK") == "1":
            traceback.print_exc()
        return _fail(with_options(line, names))


def explain(error: Exception) -> str | None:
    """The line of an error for the user; None for one that is a bug."""
    if isinstance(error, MemoryError):
        return f"not enough memory {error}".rstrip()
    if isinstance(error, RecursionError):
        return "a file that was read is nested too deeply"
    if isinstance(error, RuntimeError):
        line = str(error).partition("\n")[0]
        if "could not create a" in line:  # words of oneDNN, which says no more
            return f"not enough memory, as it seems: {line}"
        return line if any(words in str(error) for words in EXHAUSTED) else None
    known = isinstance(error, ValueError | ArithmeticError | OSError | ImportError)
    return str(error) if known else None


def _fail(message: str) -> int:
    """Print an error; returns the exit status."""
    print(escape_control(f"dsmooth: error: {message}"), file=sys.stderr)
    return 1


def with_options(message: str, names: Collection[str]) -> str:
    """The message of an error with the arguments in backquotes that are options as typed.

    `images` becomes --images, `resume=True` --resume, and `image_size=32` --image-size 32.
    """

    def option(named: re.Match[str]) -> str:
        name, value = named.groups()
        if name not in names:
            return named[0]
        flag = f"--{name.replace('_', '-')}"
        return flag if value in (None, "True") else f"{flag} {shlex.quote(value)}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", option, message)


def option_names(kind: type) -> set[str]:
    """The names in Python of a verb's options."""
    names: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            names |= option_names(cast(type, hint))
        elif name not in POSITIONAL:
            names.add(name)
    return names


def parse(args: Sequence[str]) -> object:
    """The verb's options that the arguments mean; prints help, or an error, and leaves."""
    if args[:1] == ["--version"]:
        print(f"dsmooth {__version__}", flush=True)
        sys.exit(0)
    prog, kind, rest = "dsmooth", cast(Any, VERBS), list(args)
    while isinstance(kind, dict) and rest and rest[0] in kind:
        prog, kind, rest = f"{prog} {rest[0]}", kind[rest[0]], rest[1:]
    if isinstance(kind, dict):  # help, a completion, or an error
        return tyro.cli(_union(VERBS), prog="dsmooth", description=_wrapped(ABOUT), args=args)
    for name, _, _ in (word.partition("=") for word in rest):
        if HINTS.get(name, "")[2:].partition(",")[0].replace("-", "_") in option_names(kind):
            _fail(f"there is no {name}: did you mean {HINTS[name]}?")
            sys.exit(2)
    return tyro.cli(
        kind,
        args=rest,
        prog=prog,
        description=_wrapped(kind.__doc__ or ""),
        config=(tyro.conf.HelptextFromCommentsOff,),
        default=_typed(rest) if kind is Train else None,
    )


def _typed(words: Sequence[str]) -> Train:
    """The defaults that help shows, of the role and the preset among the words."""
    role = next((word for word in words if word in get_args(Role)), "noisy")
    typed = re.findall(r"(?:^|\n)--(?:no-)?([\w-]+)", "\n".join(words))
    name = re.search(r"(?:^|\n)--preset[=\n](.*)", "\n".join(words))
    config = preset(name[1] if name and name[1] in PRESETS else DEFAULT_PRESET, cast(Role, role))
    settings = TypedSettings(**{**vars(config), "model": TypedModel(**vars(config.model))})
    named = frozenset(word.replace("-", "_") for word in typed)
    return Train(role=tyro.MISSING, settings=settings, named=named)


def _union(kinds: Mapping[str, Any]) -> Any:
    """One type of several verbs, by their names, as tyro takes it."""
    members = []
    for name, kind in kinds.items():
        group = isinstance(kind, dict)
        about = "Measure models and samples." if group else kind.__doc__.partition("\n")[0]
        kind = _union(kind) if group else kind
        members.append(Annotated[kind, subcommand(name, description=about)])
    # Union, because the members are known when the program runs: no `|` stands between them.
    return Union[tuple(members)]  # noqa: UP007


def _wrapped(text: str) -> str:
    """A docstring's paragraphs in lines of the width of help, which tyro joins at the margin."""
    wrapper = textwrap.TextWrapper(HELP_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(map(wrapper.fill, inspect.cleandoc(text).split("\n\n")))
