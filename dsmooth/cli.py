"""The command `dsmooth`: parses arguments and calls; torch is imported by what it calls."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, get_args

import tyro
from tyro.conf import subcommand

from ._version import __version__
from .commands.options import (
    DEFAULT_PRESET,
    Doctor,
    Evaluate,
    Probe,
    Reproduce,
    Sample,
    Train,
)
from .config import Role
from .distributed import rank_and_size
from .presets import preset
from .runs import RunFolder, default_folder, read_run_config

Command = Train | Sample | Evaluate | Probe | Reproduce | Doctor


def main(args: Sequence[str] | None = None) -> None:
    """Run the command with `args`, by default those of the process; exits with its status."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"dsmooth {__version__}")
        return
    try:
        command = _parse(args)
        with _silence() if rank_and_size()[0] > 0 else contextlib.nullcontext():
            sys.exit(_run(command))
    except BrokenPipeError:  # the reader of a pipe left
        sys.exit(141)
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"dsmooth: error: {error}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"dsmooth: error: not enough memory {error}".rstrip(), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Of several processes rank 0 alone shows its progress; errors are everybody's."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _parse(args: list[str]) -> Command:
    command = tyro.cli(
        Annotated[Train, subcommand("train", default=_train_default(args), prefix_name=False)]
        | Annotated[Sample, subcommand("sample", prefix_name=False)]
        | Annotated[Evaluate, subcommand("evaluate", prefix_name=False)]
        | Annotated[Probe, subcommand("probe", prefix_name=False)]
        | Annotated[Reproduce, subcommand("reproduce", prefix_name=False)]
        | Annotated[Doctor, subcommand("doctor", prefix_name=False)],
        args=args,
        prog="dsmooth",
        description="Autoregressive image modelling with distribution smoothing, made fast.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    )
    return command


def _train_default(args: list[str]) -> Train:
    """The defaults of `dsmooth train`: from --config, from the run to resume, or from a preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("verb", nargs="?")
    parser.add_argument("role", nargs="?")
    parser.add_argument("--preset")
    parser.add_argument("--config")
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(args)
    role: Role = known.role if known.role in get_args(Role) else "noisy"
    source = Path(known.config) if known.config else None
    if known.resume and not known.config and not known.preset:
        source = RunFolder(Path(known.out) if known.out else default_folder(role)).config
    if known.verb == "train" and source is not None:
        settings, _ = read_run_config(source)
    else:
        settings = preset(known.preset or DEFAULT_PRESET, role)
    return Train(role=tyro.MISSING, settings=settings)


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
