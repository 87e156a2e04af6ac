"""`dsmooth train`: settings from the command line, a run into a folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..config import ModelConfig, Role, TrainConfig
from ..distributed import barrier, broadcast_int, process_group
from ..fields import Json, check_number
from ..files import check_writable, read_json
from ..machine import choose_device, use_threads
from ..presets import check_one_length, preset
from ..runs import RunFolder, default_folder, run_config
from .options import CLUSTERS, LABEL_DROPOUT, LABELS, RGB_PRESET, UNNAMED, Train


@dataclass(frozen=True)
class Run:
    """One of the runs that a command stands for."""

    folder: Path
    settings: TrainConfig
    rgb: TrainConfig
    """The settings if the images are RGB."""


def train(options: Train) -> int:
    """Carry out `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    runs = runs_of(options)
    if options.print_config:
        settings = {run.folder.name: asdict(run.settings) for run in runs}
        shown = settings if options.role == "pair" else settings.popitem()[1]
        print(json.dumps(shown, indent=2))
        return 0
    for run in runs:
        check_writable(RunFolder(run.folder).config)
    if len(runs) > 1:
        check_folders(options, runs)
    for run in runs:
        if status := train_one(options, run):
            print(f"{options.role}: the same command with --resume goes on")
            return status
        if run.folder.name == UNNAMED and options.clusters is not None:
            cluster_data(options, run.folder)
    if len(runs) > 1:
        minutes = (
            f"{run.folder.name} {(RunFolder(run.folder).record().seconds or 0) / 60:.1f}"
            for run in runs
        )
        path = shlex.quote(str(run.folder.parent))
        print(f"pair: minutes of training: {', '.join(minutes)}; next: `dsmooth sample {path}`")
        return 0
    # NOISY and DENOISER stand for the folders of other runs.
    path, config = shlex.quote(str(run.folder)), RunFolder(run.folder).read_config()[0]
    label = " --label each" * bool(config.model.n_classes)
    step = {
        "noisy": f"train its denoiser, then `dsmooth sample {path} DENOISER{label}`",
        "denoiser": f"`dsmooth sample NOISY {path}{label}`, with the folder of its noisy model",
        "plain": f"`dsmooth sample {path}{label}`, or `dsmooth evaluate bpd {path}`",
    }[run.settings.role]
    print(f"{run.settings.role}: next: {step}")
    return 0


def check_folders(options: Train, runs: Sequence[Run]) -> None:
    """Raise ValueError, before the first run is trained, where a later one cannot begin."""
    from ..training.beginning import check_new_run, is_restart

    with process_group():
        for run in runs:
            stored = RunFolder(run.folder)
            if not (options.resume or broadcast_int(is_restart(stored))):
                check_new_run(stored, run.settings)
        barrier()  # what one process refuses ends all of them before any trains


def runs_of(options: Train) -> list[Run]:
    """The runs of a command, in order.

    With clusters the noisy model of a pair goes on from a first one, and each has half of its
    images.
    """
    check_one_length(options.named)
    if options.force and not options.resume:
        raise ValueError("--force is for --resume: a new run has no settings to change")
    if options.folder is not None and {"data", "data_dir"} & options.named:
        raise ValueError(f"{options.folder} is a folder of images: leave --data and --data-dir out")
    if options.role != "pair":
        if options.clusters is not None:
            raise ValueError(
                "--clusters is for a pair: for one model give --labels a file of clusters"
            )
        return [_run(options, options.role, options.out or default_folder(options.role))]
    if options.config is not None:
        raise ValueError("a pair is two runs, and --config has the settings of one: name its role")
    folder = options.out or Path("runs") / "pair"
    denoiser = _run(options, "denoiser", folder / "denoiser", shares=2)
    if options.clusters is None:
        return [_run(options, "noisy", folder / "noisy", shares=2), denoiser]
    check_number("clusters", options.clusters, 2)
    if "labels" in options.named:
        raise ValueError("`labels` and `clusters` both name the images")
    unnamed, noisy = (
        _run(options, "noisy", folder / name, shares=4) for name in (UNNAMED, "noisy")
    )
    return [unnamed, noisy, denoiser]


def _run(options: Train, role: Role, folder: Path, shares: int = 1) -> Run:
    """A run that gets one of so many shares of the budget; of 4, also half of its images."""
    typed, named, stored = options.settings, options.named, RunFolder(folder)
    goes_on = options.resume and stored.config.exists()
    if goes_on and (theirs := stored.read_config()[0].role) != role:
        raise ValueError(f"{folder} holds another run: its role is {theirs}, not {role}")
    values = _named(typed, named) | {"role": role}
    if options.folder is not None:
        values |= {"data": "folder", "data_dir": str(options.folder)}
    if "budget" in named:
        values["images"] = None
    if shares == 4 and folder.name != UNNAMED and not goes_on:
        values["init"] = str(folder.parent / UNNAMED)
        values["labels"] = str(folder.parent / CLUSTERS / LABELS)
        values["label_dropout"] = typed.label_dropout or LABEL_DROPOUT

    def settings(name: str) -> TrainConfig:
        """The settings typed, over those of --config, of the run to resume, or of a preset."""
        if options.config is not None:
            config = replace(_read_settings(options.config), schedule_from=0)
        elif goes_on and "preset" not in named:
            config = stored.read_config()[0]
        else:
            config = preset(name, role)
            data = values.get("data", config.data)
            if data != "celeba" and not (data == "folder" and "preset" in named):
                config = replace(config, image_size=None)  # these have a size of their own
            if "init" in named and typed.init is not None:
                config = _with_network(config, typed.init)
        network = replace(config.model, **_named(typed.model, named))
        config = replace(config, model=network, **values)
        if config.budget is not None:
            share = not goes_on or "budget" in named  # one that goes on has its share already
            return replace(config, budget=config.budget / shares) if share else config
        if config.images is not None and shares == 4 and (not goes_on or "images" in named):
            return replace(config, images=-(-config.images // 2))
        return config

    rgb = options.preset if "preset" in named else RGB_PRESET
    colours = values.get("data") in ("cifar10", "celeba")
    return Run(folder, settings(rgb if colours else options.preset), settings(rgb))


def _named(typed: TrainConfig | ModelConfig, names: Collection[str]) -> Json:
    return {each.name: getattr(typed, each.name) for each in fields(typed) if each.name in names}


def _with_network(config: TrainConfig, init: str) -> TrainConfig:
    """The settings with the network and the smoothing that a run begins with."""
    from ..training.beginning import find_initial

    loaded = find_initial(init, config.role)
    network = loaded.networks[config.role].config
    # The data have the classes.
    model = replace(network, n_classes=0, class_names=(), class_shares=(), labels_sha256=None)
    config = replace(config, model=model)
    if (smoothing := loaded.smoothing) is None:
        return config
    return replace(config, smoothing=smoothing.kind, scale=smoothing.scale)


def _read_settings(path: Path) -> TrainConfig:
    """The settings in the file of --config; --print-config prints no size."""
    return run_config({"height_and_width": (0, 0), **read_json(path)}, path)[0]


def train_one(options: Train, run: Run) -> int:
    """Train a model into its folder; returns the exit status as `train` does."""
    from ..training import tensorboard
    from ..training import train as train_run

    result = train_run(
        run.settings,
        run.folder,
        rgb=run.rgb,
        match_channels=not options.named & {"image_channels", "init"},
        resume=options.resume,
        force=options.force,
        device=options.execution.device,
        threads=options.execution.threads,
        on_evaluation=tensorboard(run.folder / "tensorboard") if options.tensorboard else None,
        progress=True,
    )
    return 128 + result.interrupted if result.interrupted else 0


def cluster_data(options: Train, folder: Path) -> None:
    """Write the clusters of a run's images by its model beside it, unless they are there."""
    from ..evaluate.clusters import write_clusters
    from ..training.beginning import load_data

    out = folder.parent / CLUSTERS
    with process_group():
        if broadcast_int((out / LABELS).exists()):
            return
        use_threads(options.execution.threads)
        model, config, _ = RunFolder(folder).load_model()
        assert options.clusters is not None
        model.to(choose_device(options.execution.device))
        data = load_data(config)
        write_clusters(model, data, options.clusters, config.seed, out / LABELS)
