"""`dsmooth train`: settings from the command line, a run into a folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..distributed import barrier, broadcast_int, process_group, rank_and_size
from ..files import check_writable
from ..machine import choose_device, use_threads
from ..runs import RunFolder, default_folder, training_seconds
from .options import CLUSTERS, LABELS, UNNAMED, Train


def train(options: Train) -> int:
    """Carry out `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    assert options.role != "pair"  # dsmooth.cli makes a command of each of its two runs
    if options.clusters is not None:
        raise ValueError("--clusters is for a pair: for one model give --labels a file of clusters")
    folder = options.out or default_folder(options.role)
    check_run(options, folder)
    if (status := train_one(options, folder)) == 0:
        # NOISY and DENOISER stand for the folders of other runs.
        path, config = shlex.quote(str(folder)), RunFolder(folder).read_config()[0]
        label = " --label each" * bool(config.model.n_classes)
        step = {
            "noisy": f"train its denoiser, then `dsmooth sample {path} DENOISER{label}`",
            "denoiser": f"`dsmooth sample NOISY {path}{label}`, with the folder of its noisy model",
            "plain": f"`dsmooth sample {path}{label}`, or `dsmooth evaluate bpd {path}`",
        }[options.role]
        print(f"{options.role}: next: {step}")
    return status


def check_run(options: Train, folder: Path) -> None:
    """Raise ValueError for options and a folder that do not fit, before any work."""
    if options.force and not options.resume:
        raise ValueError("--force is for --resume: a new run has no settings to change")
    run, images, settings = RunFolder(folder), options.folder, options.settings
    if options.resume and run.config.exists():
        role = run.read_config()[0].role
        if role != options.role:  # with the run's settings it would fit no other
            raise ValueError(f"{folder} holds another run: its role is {role}, not {options.role}")
    if images is not None and (settings.data, settings.data_dir) != ("folder", str(images)):
        name = "data" if settings.data != "folder" else "data_dir"
        raise ValueError(
            f"{images} is a folder of images, but `{name}` is {getattr(settings, name)}: leave one "
            "out"
        )
    check_writable(run.config)


def train_one(options: Train, folder: Path) -> int:
    """Train a model into `folder`; returns the exit status as `train` does."""
    from ..training import tensorboard
    from ..training import train as train_run

    assert options.role != "pair"
    result = train_run(
        replace(options.settings, role=options.role),
        folder,
        resume=options.resume,
        force=options.force,
        device=options.execution.device,
        threads=options.execution.threads,
        on_evaluation=tensorboard(folder / "tensorboard") if options.tensorboard else None,
        progress=True,
    )
    if result.interrupted:
        print(f"{options.role}: go on with `{resume_command(options, folder)}`")
        return 128 + result.interrupted
    return 0


def train_pair(commands: Mapping[str, Train]) -> int:
    """Carry out `dsmooth train pair`; returns the exit status as `train` does.

    commands: of the runs, by the names of their folders, in order.
    """
    from ..training.beginning import check_new_run, is_restart

    runs = {options.out: options for options in commands.values() if options.out is not None}
    folders = dict(zip(commands, runs, strict=True))
    whole = sum(options.settings.budget or 0 for options in runs.values())
    with process_group():
        for folder, options in runs.items():  # of all, before the first is trained
            check_run(options, folder)
            run = RunFolder(folder)
            if not (options.resume or broadcast_int(is_restart(run))):
                check_new_run(run, options.settings)
        barrier()  # what one process refuses ends all of them before any trains
    for folder, options in runs.items():
        share = options.settings.budget
        if share is not None:
            print(f"{folder.name}: {share:.3g} of the pair's {whole:.3g} minutes", flush=True)
        status = train_one(options, folder)
        if status:
            print("pair: the same command with --resume goes on")
            return status
        if folder == folders.get(UNNAMED):
            cluster_data(folder, options)
    minutes = [
        f"{folder.name} {training_seconds(RunFolder(folder).history()) / 60:.1f}" for folder in runs
    ]
    path = shlex.quote(str(folders["noisy"].parent))
    print(f"pair: minutes of training: {', '.join(minutes)}; next: `dsmooth sample {path}`")
    return 0


def cluster_data(folder: Path, options: Train) -> None:
    """Write the clusters of a run's images by its model beside it, unless they are there."""
    from ..training.beginning import load_data
    from .cluster import write_clusters

    out = folder.parent / CLUSTERS
    with process_group():
        if broadcast_int((out / LABELS).exists()):
            return
        use_threads(options.execution.threads)
        model, config, _ = RunFolder(folder).load_model()
        assert options.clusters is not None
        model.to(choose_device(options.execution.device))
        folder_of_images = None if config.data_dir is None else Path(config.data_dir)
        write_clusters(
            model, load_data(config), options.clusters, config.seed, out, folder_of_images
        )


def resume_command(options: Train, folder: Path) -> str:
    """The command that goes on with a run as it was begun, by as many processes and threads."""
    words = ["dsmooth", "train", options.role, "--out", str(folder), "--resume"]
    for name in ("threads", "device"):
        value = getattr(options.execution, name)
        if value not in (None, "auto"):
            words += [f"--{name}", str(value)]
    if options.tensorboard:
        words.append("--tensorboard")
    size = rank_and_size()[1]
    if size > 1:
        local = os.environ.get("LOCAL_WORLD_SIZE", size)
        words = ["torchrun", "--nproc-per-node", str(local), "-m", *words]
    return shlex.join(words)
