"""The command `dsmooth`: parses arguments and calls; torch is imported by what it calls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from ._version import __version__
from .config import Method, ProbeSettings, ReproductionStage, Role, Score, TrainConfig
from .evaluate.options import Evaluate
from .presets import DESCRIPTIONS, PRESETS, preset
from .runs import RunFolder, read_run_config

DEFAULT_PRESET = "mnist-quick"
PRESET_HELP = "Settings to start from: " + "; ".join(f"{k}: {v}" for k, v in DESCRIPTIONS.items())


@dataclass(frozen=True)
class Train:
    """Train one model: noisy p(x~), denoiser p(x | x~), or plain p(x).

    Writes config.json, log.jsonl, checkpoint.safetensors, model.safetensors and samples-*.png into
    the folder --out. Ctrl-C saves and leaves; --resume goes on, bitwise as if nothing had happened.
    """

    role: Positional[Role]
    """Which model."""
    settings: OmitArgPrefixes[TrainConfig]
    preset: Annotated[str, arg(help=PRESET_HELP, metavar="|".join(PRESETS))] = DEFAULT_PRESET
    config: Path | None = None
    """Repeat the run whose config.json this is, instead of a preset."""
    out: Path | None = None
    """Folder of the run; by default runs/ROLE."""
    resume: bool = False
    """Go on with the run in --out, whose settings are the defaults then."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra "tensorboard")."""
    print_config: bool = False
    """Print the settings as JSON and stop."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a pair, or from one trained model, into files.

    A long call with a folder as --out can be stopped and repeated: it goes on where it was. Under
    torchrun several processes (and GPUs) draw the same images together.
    """

    models: Positional[tuple[Path, ...]]
    """A saved pair, or the run folders of a noisy model and of its denoiser, or one run folder."""
    count: Annotated[int, arg(aliases=["-n"])] = 64
    """Number of images."""
    out: tuple[Path, ...] = (Path("samples.png"),)
    """Files to write: .png for a grid, .npz for an array `x` (N, C, H, W) float32 in [-1, 1]; or a
    folder, a path without suffix, for numbered .npy shards of any number of images."""
    seed: int = 0
    """Decides the images, together with --first-index."""
    first_index: int = 0
    """Index of the first image in the stream that --seed names."""
    method: Method = "two-step"
    """two-step: x~ then x given x~; single-step: posterior mean of x~; noisy: x~ itself."""
    score: Score = "full"
    """Gradient of single-step: through the whole network, or each pixel's own conditional."""
    temperature: float = 1.0
    """Below 1 for likelier pixels, above 1 for more varied ones."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a CUDA device if there is one that can be used. There the
    networks compute in bfloat16."""


@dataclass(frozen=True)
class Probe:
    """Train linear probes on the features of both networks of a pair.

    Writes probes.json with the test accuracy after each block, and a PNG per network. Controls are
    the pixels and untrained networks. A stopped call can be repeated: it goes on where it was.
    """

    models: Positional[tuple[Path, ...]]
    """A saved pair, or the run folders of a noisy model and of its denoiser."""
    settings: OmitArgPrefixes[ProbeSettings]
    data: str | None = None
    """Data set; by default the one that the run was trained on, mnist for a saved pair."""
    data_dir: Path | None = None
    """Where its files are; by default where the run found them, else the embedded MNIST subset."""
    out: Path = Path("probes")
    """Folder for the results; also for features meanwhile, up to 10 GB for all of MNIST."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True)
class Reproduce:
    """The whole paper in one command: train, draw, measure, probe, and write report.html.

    Trains a pair and a plain baseline, or takes --models. Stages whose results are in the folder
    already are skipped, so a stopped call can be repeated.
    """

    out: Path = Path("reproduction")
    """Folder for runs, pictures, results.json and report.html."""
    preset: Annotated[str, arg(help=PRESET_HELP, metavar="|".join(PRESETS))] = DEFAULT_PRESET
    budget: float | None = None
    """Minutes of training in all (8 by default); noisy model and denoiser train side by side."""
    models: tuple[Path, ...] = ()
    """Take these instead of training: a saved pair, or the run folders of a noisy model and of its
    denoiser; and perhaps that of a plain model."""
    only: ReproductionStage | None = None
    """Do one stage again, whether done before or not, and no other."""
    data: str | None = None
    """Data set for --models; by default that of their runs, mnist for a saved pair."""
    data_dir: str | None = None
    """Folder of the full data set; without one, the embedded MNIST subset."""
    download: bool = False
    """Download the data set into --data-dir if it is not there."""
    count: Annotated[int, arg(aliases=["-n"])] = 1000
    """Samples of each kind: the first 64 are shown, all count for the Fréchet distance."""
    scored_images: int = 1000
    """Held-out images whose bits/dim are measured."""
    probe_train_images: int = 2000
    """Training images of the linear probes."""
    probe_test_images: int = 1000
    """Test images of the linear probes."""
    extractor: str = "auto"
    """What the Fréchet distance looks at: auto (the package's classifier for MNIST, none for other
    data), or one of `dsmooth evaluate fid --help`."""
    seed: int = 0
    """Decides weights, noise and samples."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True)
class Doctor:
    """Say what was built, what this machine has, and run a one-second self-test."""


Command = Train | Sample | Evaluate | Probe | Reproduce | Doctor


def main(args: Sequence[str] | None = None) -> None:
    """Run the command with `args`, by default those of the process; exits with its status."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"dsmooth {__version__}")
        return
    try:
        sys.exit(_run(_parse(args)))
    except BrokenPipeError:  # the reader of a pipe left
        sys.exit(141)
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"dsmooth: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("dsmooth: stopped", file=sys.stderr)
        sys.exit(130)


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
        source = RunFolder(run_folder(role, Path(known.out) if known.out else None)).config
    if known.verb == "train" and source is not None:
        settings, _ = read_run_config(source)
    else:
        settings = preset(known.preset or DEFAULT_PRESET, role)
    return Train(role=tyro.MISSING, settings=settings)


def run_folder(role: Role, out: Path | None) -> Path:
    """Where a run goes: --out, by default runs/ROLE."""
    return out or Path("runs") / role


def _run(command: Command) -> int:
    if isinstance(command, Doctor):
        from .doctor import run_doctor

        return run_doctor()
    if isinstance(command, Train):
        return _train(command)
    if isinstance(command, Sample):
        from .draw import sample

        sample(command)
        return 0
    if isinstance(command, Evaluate):
        from .evaluate.commands import evaluate

        evaluate(command.what)
        return 0
    if isinstance(command, Probe):
        from .evaluate.probe_command import probe

        probe(
            command.models,
            command.settings,
            command.out,
            data=command.data,
            data_dir=command.data_dir,
            threads=command.threads,
        )
        return 0
    return _reproduce(command)


def _reproduce(command: Reproduce) -> int:
    from .reproduce import BUDGET_MINUTES, Given, Plan, Sizes, plan_from_preset, reproduce

    probes = ProbeSettings(
        train_images=command.probe_train_images, test_images=command.probe_test_images
    )
    sizes = Sizes(command.count, command.scored_images, probes, command.extractor)
    plan: Plan | Given
    if command.models:
        if command.budget is not None or command.download:
            name = "--download" if command.budget is None else "--budget"
            raise ValueError(f"{name} is for training, and with --models nothing is trained")
        plan = Given(command.models, command.data, command.data_dir, command.seed)
    else:
        if command.data is not None:
            raise ValueError("--data goes with --models; what is trained, --preset says")
        plan = plan_from_preset(
            command.preset,
            budget=BUDGET_MINUTES if command.budget is None else command.budget,
            data_dir=command.data_dir,
            download=command.download,
            seed=command.seed,
        )
    return reproduce(command.out, plan, sizes=sizes, only=command.only, threads=command.threads)


def _train(command: Train) -> int:
    settings = replace(command.settings, role=command.role)
    if command.print_config:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(settings), indent=2))
        return 0
    from .train import train

    folder = run_folder(command.role, command.out)
    result = train(
        settings,
        folder,
        resume=command.resume,
        threads=command.threads,
        tensorboard=command.tensorboard,
    )
    return 128 + result.interrupted if result.interrupted else 0
