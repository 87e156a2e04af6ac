"""The command `dsmooth`: parses arguments and calls a verb; the verbs import torch."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import json
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import subcommand

from ._version import __version__
from .commands import options
from .commands.options import (
    CLUSTERS,
    DEFAULT_PRESET,
    LABEL_DROPOUT,
    LABELS,
    RGB_PRESET,
    UNNAMED,
    Train,
)
from .config import Role, TrainConfig
from .distributed import rank_and_size
from .fields import check_number
from .files import read_json
from .machine import keep_freed_memory
from .presets import check_one_length, preset
from .progress import lines_shown, silence
from .runs import RunFolder, default_folder, run_config
from .tables import shown

VERBS: dict[str, Any] = {
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
    "--num-images": "--count",
    "--n-samples": "--count",
    "--output": "--out",
    "--batch": "--batch-size",
    "--num-classes": "--n-classes",
    "--resolution": "--image-size",
}
POSITIONAL = ("role", "models", "samples")
# Errors of a machine that has not enough of something.
EXHAUSTED = ("can't start new thread", "can't allocate memory", "out of memory")
# How often a waiting thread of libgomp turns before it sleeps, read when torch is loaded. Its own
# 300,000 turns are some milliseconds, in which a thread keeps its core from other work. Beside such
# work 150 forward passes by two threads took 1.7 times as long and as much CPU.
SPINS = "10000"
STOPPED = 130  # exit status after Ctrl-C
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
    if size > 1 or status == STOPPED:
        # Python's own way out waits for threads at work, and a thread of torch's process group may
        # abort it.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _call(args: list[str]) -> int:
    """Run the command; an error is printed in a line. Returns the exit status."""
    kind: type = Train
    try:
        prog, kind, rest = _kind(args)
        command = _parse(prog, kind, rest)
        pair = None
        if kind is Train and command.role == "pair":
            pair = _pair_commands(prog, command, rest)
        if kind is Train and command.print_config:
            settings = {
                name: {**asdict(one.settings), "role": one.role}
                for name, one in (pair or {"": command}).items()
            }
            print(json.dumps(settings if pair else settings[""], indent=2))
            return 0
        quiet = getattr(command, "execution", options.Running()).quiet  # doctor has none
        # With --quiet `evaluate` still prints the numbers of --out -, and silences the rest itself.
        silent = silence() if quiet and args[0] != "evaluate" else contextlib.nullcontext()
        with lines_shown(logging.ERROR if quiet else logging.INFO), silent:
            if pair:
                from .commands.train import train_pair

                return train_pair(pair)
            # A verb is imported when it is called, and torch with it.
            verb = getattr(import_module(f".commands.{args[0]}", __package__), args[0])
            return verb(command) or 0
    except BrokenPipeError:  # the reader of a pipe left
        return 141
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        return _fail(with_options(str(error), option_types(kind)))
    except MemoryError as error:
        return _fail(f"not enough memory {error}".rstrip())
    except RecursionError:
        return _fail("a file that was read is nested too deeply")
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        if "could not create a" in line:  # words of oneDNN, which says no more
            line = f"not enough memory, as it seems: {line}"
        elif not any(words in str(error) for words in EXHAUSTED):
            raise
        return _fail(line)
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        return STOPPED


def _pair_commands(prog: str, command: Train, args: list[str]) -> dict[str, Train]:
    """The commands that `dsmooth train pair` stands for, by the folders of their runs.

    With clusters the noisy model goes on from a first one, and each has half of its images.
    """
    if command.config is not None:
        raise ValueError("a pair is two runs, and --config has the settings of one: name its role")
    folder = command.out or Path("runs") / "pair"
    named, words = _given(args, option_types(Train))
    if command.clusters is not None:
        check_number("clusters", command.clusters, 2)
        if "labels" in named:
            raise ValueError("`labels` and `clusters` both name the images")
    at = next(i for i, word in words.items() if word == "pair")

    def command_of(role: Role, name: str) -> Train:
        own = [*args[:at], role, *args[at + 1 :], "--out", str(folder / name)]
        run: Train = _parse(prog, Train, own)
        new = not (command.resume and RunFolder(folder / name).config.exists())
        settings, halves = run.settings, 1 + (role == "noisy" and command.clusters is not None)
        # A run that goes on has its share already.
        if settings.budget is not None and (new or "budget" in named):
            settings = replace(settings, budget=settings.budget / 2 / halves)
        elif settings.images is not None and (new or "images" in named):
            settings = replace(settings, images=-(-settings.images // halves))
        if name == "noisy" and command.clusters is not None and new:
            settings = replace(
                settings,
                init=str(folder / UNNAMED),
                labels=str(folder / CLUSTERS / LABELS),
                label_dropout=settings.label_dropout or LABEL_DROPOUT,
            )
        return replace(run, settings=settings)

    names: list[tuple[Role, str]] = [("noisy", "noisy"), ("denoiser", "denoiser")]
    if command.clusters is not None:
        names.insert(0, ("noisy", UNNAMED))
    return {name: command_of(role, name) for role, name in names}


def _fail(message: str, prog: str = "dsmooth", status: int = 1) -> int:
    """Print an error; returns the exit status."""
    print(shown(f"{prog}: error: {message}"), file=sys.stderr)
    return status


def with_options(message: str, names: Collection[str]) -> str:
    """The message of an error with the arguments in backticks that are options as typed.

    `images` becomes --images, `resume=True` --resume, and `image_size=32` --image-size 32.
    """

    def option(named: re.Match[str]) -> str:
        name, value = named.groups()
        if name not in names:
            return named[0]
        flag = f"--{name.replace('_', '-')}"
        return flag if value in (None, "True") else f"{flag} {shlex.quote(value)}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", option, message)


def option_types(kind: type) -> dict[str, Any]:
    """The types of the options of a verb by their names in Python."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            types |= option_types(cast(type, hint))
        elif name not in POSITIONAL:
            types[name] = hint
    return types


def _kind(args: list[str]) -> tuple[str, type, list[str]]:
    """The verb's name in messages, the class of its options, and the arguments for these."""
    prog, kinds, rest = "dsmooth", VERBS, args
    while rest and rest[0] in kinds:
        prog, kind, rest = f"{prog} {rest[0]}", kinds[rest[0]], rest[1:]
        if not isinstance(kind, dict):
            return prog, kind, rest
        kinds = kind
    if args[:1] == ["--version"]:
        print(f"dsmooth {__version__}", flush=True)
        sys.exit(0)
    if rest and not rest[0].startswith("-"):
        close = difflib.get_close_matches(rest[0], kinds, 1)
        meant = f"did you mean {close[0]}?" if close else f"verbs are {', '.join(kinds)}"
        told = f"there is no verb {rest[0]!r}: {meant}; {prog} --help lists them"
        sys.exit(_fail(told, prog, 2))
    # Help, a completion, or an error.
    tyro.cli(_union(VERBS), prog="dsmooth", description=_wrapped(ABOUT), args=args)
    raise AssertionError("tyro leaves")


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


def _parse(prog: str, kind: type, args: list[str]) -> Any:
    """The command that the arguments mean; prints help, or an error that names the nearest."""
    types = option_types(kind)
    given, words = _given(args, types)
    folder = None
    if kind is Train and len(words) > 1:  # FOLDER, behind the role, stands for two options
        folder = {"data": "folder", "data_dir": str(Path([*words.values()][1]))}
        given |= folder
    check_one_length(given)
    for name in given.keys() - types.keys():
        meant = HINTS.get(flag := f"--{name.replace('_', '-')}", "")
        if meant[2:].partition(",")[0].replace("-", "_") in types:
            sys.exit(_fail(f"there is no {flag}: did you mean {meant}?", prog, 2))
    default: Any = None
    if kind is Train:
        role = next((word for word in words.values() if word in get_args(Role)), "noisy")
        settings = _default_training(cast(Role, role), given)
        default = Train(settings.role if given.get("config") else tyro.MISSING, settings)
    if folder:
        default = replace(default, settings=replace(default.settings, **folder))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=args,
                prog=prog,
                description=_wrapped(kind.__doc__ or ""),
                config=(tyro.conf.HelptextFromCommentsOff,),
                default=default,
            )
    except SystemExit as left:
        # Settings that are refused: tyro would name their field, not the option.
        refused = left.__context__ and left.__context__.__context__
        if isinstance(refused, ValueError):
            raise refused from None
        sys.stderr.write(said.getvalue())
        raise


def _given(args: Sequence[str], types: Mapping[str, Any]) -> tuple[dict[str, str], dict[int, str]]:
    """The options among the arguments by their names in Python; the other words by position.

    An option with several values keeps the first.
    """
    given, words, i = dict[str, str](), dict[int, str](), 0
    while i < len(args):
        name, equals, value = args[i][2:].partition("=")
        name = name.replace("-", "_")
        values = list[str]()
        if args[i].startswith("--"):
            if not equals and types.get(name.removeprefix("no_")) is not bool:
                behind = args[i + 1 :][: _most_values(types.get(name))]
                values = [*takewhile(lambda word: not word.startswith("--"), behind)]
            given[name] = next(iter(values), value)
        elif args[i] != "-h":
            words[i] = args[i]
        i += 1 + len(values)
    return given, words


def _most_values(hint: Any) -> int | None:
    """How many words an option of this type takes at most; None for any number."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is tuple:
            return None if ... in get_args(part) else len(get_args(part))
    return 1


def _wrapped(text: str) -> str:
    """A docstring's paragraphs in lines of the width of help, which tyro joins at the margin."""
    wrapper = textwrap.TextWrapper(HELP_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(map(wrapper.fill, inspect.cleandoc(text).split("\n\n")))


def _default_training(role: Role, given: Mapping[str, str]) -> TrainConfig:
    """The settings of --config or of the run to resume, else of a preset and of the data."""
    if given.get("config"):
        path = Path(given["config"])
        # --print-config prints no size.
        settings, _ = run_config({"height_and_width": (0, 0), **read_json(path)}, path)
        images = None if "budget" in given else settings.images
        return replace(settings, images=images, schedule_from=0)
    run = RunFolder(given.get("out") or default_folder(role))
    if "resume" in given and "preset" not in given and run.config.exists():
        return run.read_config()[0]
    named: dict[str, Any] = {key: given[key] for key in ("data", "data_dir") if given.get(key)}
    named |= {"images": None} if "budget" in given else {}
    settings = preset(given.get("preset") or DEFAULT_PRESET, role, **named)
    channels = None
    if settings.data == "folder" and settings.data_dir and Path(settings.data_dir).is_dir():
        from .data.folder import folder_channels

        channels = folder_channels(Path(settings.data_dir))
    if "preset" not in given and (channels == 3 or settings.data in ("cifar10", "celeba")):
        settings = preset(RGB_PRESET, role, **named)
    if settings.data != "celeba" and not (settings.data == "folder" and "preset" in given):
        settings = replace(settings, image_size=None)  # these have a size of their own
    if "init" in given:
        from .training.beginning import find_initial

        saved = find_initial(given["init"], role)
        model = replace(saved.config, n_classes=0, class_names=())  # the data name the classes
        kind = saved.settings.smoothing or settings.smoothing
        scale = saved.settings.scale or settings.scale
        settings = replace(settings, model=model, smoothing=kind, scale=scale)
    elif channels is not None and "image_channels" not in given:
        settings = replace(settings, model=replace(settings.model, image_channels=channels))
    return settings
