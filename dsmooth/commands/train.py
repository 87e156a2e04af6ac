"""`dsmooth train`: settings from the command line, runs into folders."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config import DERIVED, Role, TrainConfig
from ..data.folder import shows_colours
from ..files import read_json
from ..presets import DEFAULT_PRESET, RGB_PRESET, preset, with_settings
from ..pretrained.load import weights_with
from ..pretrained.runs import RunFolder, run_config
from ..progress import LOG
from ..training import tensorboard
from ..training import train as train_one
from ..training.plan import check_folder
from .options import Train, given_settings

RGB_DATA = ("cifar10", "celeba")


def train(options: Train) -> int:
    """Run `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    given, start = given_settings(options), options.config or options.preset
    roles: tuple[Role, ...] = ("noisy", "denoiser") if options.role == "pair" else (options.role,)
    out, runs = options.out or Path("runs") / options.role, dict[RunFolder, TrainConfig]()
    shares = 1 if given.get("budget") is None else len(roles)
    for role in roles:
        run = RunFolder(out / role if len(roles) > 1 else out)
        config = settings_of(given, role, run, start, options.resume)
        runs[run] = replace(config, budget=config.budget and config.budget / shares)
    if options.print_config:
        printed = {config.role: asdict(config) for config in runs.values()}
        one = next(iter(printed.values()))
        print(json.dumps(printed if len(runs) > 1 else one, indent=2))
        return 0
    for run, config in runs.items():  # the second of a pair is refused before the first is trained
        check_folder(run, config, options.resume)
    for run, config in runs.items():
        result = train_one(
            config,
            run.path,
            resume=options.resume,
            device=options.execution.device,
            threads=options.execution.threads,
            on_evaluation=tensorboard(run.path / "tensorboard") if options.tensorboard else None,
            progress=True,
        )
        if result.interrupted:
            LOG.info("%s: the same command with --resume continues", options.role)
            return 128 + result.interrupted
    LOG.info("%s: %s", options.role, next_step(runs))
    return 0


def settings_of(
    given: Mapping[str, Any], role: Role, run: RunFolder, start: str | Path | None, resume: bool
) -> TrainConfig:
    """The settings given by name, over those to start from.

    start: the name of a preset, or the file of settings. None for the run to resume, if it is
    there; else for the preset that the data suggest. Weights to begin with bring their network and
    smoothing with them.
    """
    if start is None and resume and run.config.exists():
        start = run.config
    if isinstance(start, Path):
        return with_settings(run_config(read_json(start), start), {**given, "role": role})
    name, data, folder = start, given.get("data"), given.get("data_dir")
    if name is None:
        is_rgb = shows_colours(Path(folder)) if data == "folder" and folder else data in RGB_DATA
        name = RGB_PRESET if is_rgb else DEFAULT_PRESET
    data, changes = data or preset(name, role).data, dict[str, Any]()
    if data != "celeba" and not (data == "folder" and start is not None):
        changes["image_size"] = None  # these have a size of their own
    if (source := given.get("init")) is not None:
        initial = weights_with(source, role).read_settings()
        if (noise := initial.noise) is not None:
            changes |= {"smoothing": noise.kind, "scale": noise.scale}
        # The data decide the classes.
        network = vars(initial.networks[role]).items()
        changes |= {name: value for name, value in network if name not in DERIVED}
    return preset(name, role, **{**changes, **given})


def next_step(runs: Mapping[RunFolder, TrainConfig]) -> str:
    """What to do with the trained models."""
    if len(runs) > 1:
        seconds = {config.role: run.seconds() for run, config in runs.items()}
        minutes = ", ".join(f"{role} {(spent or 0) / 60:.1f}" for role, spent in seconds.items())
        path = shlex.quote(str(next(iter(runs)).path.parent))
        return f"minutes of training: {minutes}; next: `dsmooth sample {path}`"
    # NOISY and DENOISER are the folders of other runs.
    ((run, config),) = runs.items()
    path, label = shlex.quote(str(run.path)), " --label each" * config.classes
    gaussian = config.smoothing == "gaussian"
    single = f"`dsmooth sample {path}{label} --method single-step`, or " * gaussian
    step = {
        "noisy": f"{single}train its denoiser, then `dsmooth sample {path} DENOISER{label}`",
        "denoiser": f"`dsmooth sample NOISY {path}{label}`, with the folder of its noisy model",
        "plain": f"`dsmooth sample {path}{label}`, or `dsmooth evaluate bpd {path}`",
    }[config.role]
    return f"next: {step}"
