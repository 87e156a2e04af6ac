"""The command `dsmooth`: parses arguments and calls; torch is imported by what it calls."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import tyro

from ._version import __version__
from .commands.options import (
    DEFAULT_PRESET,
    BitsOptions,
    ClassifierOptions,
    ClassifyOptions,
    Complete,
    Doctor,
    Evaluate,
    FrechetOptions,
    Probe,
    Reproduce,
    Sample,
    Train,
)
from .config import Role, TrainConfig
from .distributed import rank_and_size
from .presets import preset
from .progress import silence
from .runs import RunFolder, default_folder, read_run_config

Command = Train | Sample | Complete | Evaluate | Probe | Reproduce | Doctor
VERBS: dict[str, type] = {
    "train": Train,
    "sample": Sample,
    "complete": Complete,
    "evaluate": Evaluate,
    "probe": Probe,
    "reproduce": Reproduce,
    "doctor": Doctor,
}
MEASURES: dict[str, type] = {
    "bpd": BitsOptions,
    "fid": FrechetOptions,
    "classify": ClassifyOptions,
    "train-classifier": ClassifierOptions,
}
HELP_WIDTH = 80
TAGLINE = "Autoregressive image modelling with distribution smoothing, made fast."


def main(args: Sequence[str] | None = None) -> None:
    """Run the command with `args`, by default those of the process; exits with its status."""
    rank, size = rank_and_size()
    with silence() if rank > 0 else contextlib.nullcontext():
        status = _call(list(sys.argv[1:] if args is None else args))
    if size > 1:
        # A thread of torch's process group that lives on may abort Python's own way out.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _call(args: list[str]) -> int:
    """Run the command; an error is printed in a line. Returns the exit status."""
    try:
        command = _parse(args)
        # Numbers on the standard output are no talk: `evaluate` keeps the rest quiet itself.
        quiet = not isinstance(command, Evaluate | Doctor) and command.how.quiet
        with silence() if quiet else contextlib.nullcontext():
            return _run(command)
    except BrokenPipeError:  # the reader of a pipe left
        return 141
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"dsmooth: error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"dsmooth: error: not enough memory {error}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        return 130


def _parse(args: list[str]) -> Command:
    """The command that `args` mean. Each verb has a parser of its own, which its messages name."""
    verb = _chosen("dsmooth", VERBS, args)
    if verb == "evaluate":
        measure = _chosen("dsmooth evaluate", MEASURES, args[1:])
        options = _options(MEASURES[measure], f"dsmooth evaluate {measure}", args[2:])
        return Evaluate(options)
    default = _train_default(args) if verb == "train" else None
    return cast(Command, _options(VERBS[verb], f"dsmooth {verb}", args[1:], default))


def _chosen(prog: str, choices: Mapping[str, type], args: Sequence[str]) -> str:
    """The first of `args`, which must be one of `choices`; prints help, or an error, and leaves."""
    top = prog == "dsmooth"
    parser = argparse.ArgumentParser(
        prog,
        description=_wrapped(TAGLINE if top else Evaluate.__doc__ or ""),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=HELP_WIDTH),
        epilog=f"{prog} VERB --help describes the options of a verb.",
    )
    if top:
        version = f"dsmooth {__version__}"
        parser.add_argument(
            "--version", action="version", version=version, help="print the version and leave"
        )
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True, title="verbs")
    for name, kind in choices.items():
        verbs.add_parser(name, help=(kind.__doc__ or "").partition("\n")[0])
    word = args[0] if args else None
    if word is not None and word in choices:
        return word
    if word is not None and not word.startswith("-"):
        close = difflib.get_close_matches(word, choices, 1)
        meant = f"did you mean {close[0]}?" if close else f"verbs are {', '.join(choices)}"
        parser.error(f"there is no verb {word!r}: {meant}; {prog} --help lists them")
    parser.parse_args(args[:1])  # help, the version, or an error
    raise AssertionError("argparse leaves")


def _options(kind: type, prog: str, args: Sequence[str], default: Any = None) -> Any:
    """The options of one verb; prints help, or an error that names the nearest, and leaves."""
    config = (tyro.conf.HelptextFromCommentsOff,)
    description = _wrapped(kind.__doc__ or "")
    return tyro.cli(
        kind, args=args, prog=prog, description=description, config=config, default=default
    )


def _wrapped(text: str) -> str:
    """A docstring's paragraphs in lines of the width of help, which tyro joins at the margin."""
    wrapper = textwrap.TextWrapper(HELP_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(map(wrapper.fill, inspect.cleandoc(text).split("\n\n")))


def _train_default(args: list[str]) -> Train:
    """The defaults of `dsmooth train`: from --config, from the run to resume, or from a preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("verb", nargs="?")
    parser.add_argument("role", nargs="?")
    parser.add_argument("--preset")
    parser.add_argument("--config")
    parser.add_argument("--out")
    parser.add_argument("--image-channels", "--image_channels")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init")
    known, _ = parser.parse_known_args(args)
    role: Role = known.role if known.role in get_args(Role) else "noisy"
    source = Path(known.config) if known.config else None
    if known.resume and not known.config and not known.preset:
        source = RunFolder(Path(known.out) if known.out else default_folder(role)).config
    if known.verb == "train" and source is not None:
        settings, _ = read_run_config(source)
    else:
        settings = preset(known.preset or DEFAULT_PRESET, role)
        if known.verb == "train" and known.init:
            settings = with_network_of(known.init, settings)
    unnamed = known.image_channels is None and source is None and known.init is None
    return Train(role=tyro.MISSING, settings=settings, match_channels=unnamed)


def with_network_of(source: str, settings: TrainConfig) -> TrainConfig:
    """The settings with the network, smoothing and scale of the run or pair `source`."""
    from .train.checkpoint import read_initial

    network, smoothing, scale = read_initial(source, settings.role)
    return replace(settings, model=network.config, smoothing=smoothing, scale=scale)


def _run(command: Command) -> int:
    """Each verb is imported when it is called, and torch with it."""
    match command:
        case Doctor():
            from .commands.doctor import run_doctor

            return run_doctor()
        case Train():
            from .commands.train import train

            return train(command)
        case Sample():
            from .commands.sample import sample

            sample(command)
        case Complete():
            from .commands.complete import complete

            complete(command)
        case Evaluate():
            from .commands.evaluate import evaluate

            evaluate(command.what)
        case Probe():
            from .commands.probe import probe

            probe(command)
        case Reproduce():
            from .commands.reproduce import reproduce

            return reproduce(command)
    return 0
