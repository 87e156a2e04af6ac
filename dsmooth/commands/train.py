"""`dsmooth train`: settings from the command line, a run into a folder."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from ..distributed import rank_and_size
from ..files import check_writable
from ..runs import RunFolder, default_folder, training_seconds
from .options import Train


def train(options: Train) -> int:
    """Carry out `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    assert options.role != "pair"  # dsmooth.cli makes a command of each of its two runs
    folder = options.out or default_folder(options.role)
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


def train_one(options: Train, folder: Path) -> int:
    """Train a model into `folder`; returns the exit status as `train` does."""
    if options.force and not options.resume:
        raise ValueError("--force is for --resume: a new run has no settings to change")
    assert options.role != "pair"
    run = RunFolder(folder)
    if options.resume and run.config.exists():
        role = run.read_config()[0].role
        if role != options.role:  # with the run's settings it would fit no other
            raise ValueError(f"{folder} holds another run: its role is {role}, not {options.role}")
    settings = replace(options.settings, role=options.role)
    if options.folder is not None and settings.data_dir != str(options.folder):
        raise ValueError(
            f"{options.folder} and {settings.data_dir} are two folders of images: leave one out"
        )
    from ..training import train as train_run

    check_writable(run.config)
    result = train_run(
        settings,
        folder,
        resume=options.resume,
        force=options.force,
        device=options.execution.device,
        threads=options.execution.threads,
        tensorboard=options.tensorboard,
        keep_snapshots=options.keep_snapshots,
        progress=True,
    )
    if result.interrupted:
        print(f"{options.role}: go on with `{resume_command(options, folder)}`")
        return 128 + result.interrupted
    return 0


def train_pair(noisy: Train, denoiser: Train) -> int:
    """Carry out `dsmooth train pair`; returns the exit status as `train` does."""
    assert noisy.out is not None
    assert denoiser.out is not None
    for options, folder in ((noisy, noisy.out), (denoiser, denoiser.out)):
        share = options.settings.budget
        if share is not None:
            print(f"{options.role}: {share:.3g} of the pair's {2 * share:.3g} minutes", flush=True)
        status = train_one(options, folder)
        if status:
            print("pair: the same command with --resume goes on")
            return status
    minutes = [
        f"{folder.name} {training_seconds(RunFolder(folder).history()) / 60:.1f}"
        for folder in (noisy.out, denoiser.out)
    ]
    path = shlex.quote(str(noisy.out.parent))
    print(f"pair: minutes of training: {', '.join(minutes)}; next: `dsmooth sample {path}`")
    return 0


def resume_command(options: Train, folder: Path) -> str:
    """The command that goes on with a run as it was begun, by as many processes and threads."""
    words = ["dsmooth", "train", options.role, "--out", str(folder), "--resume"]
    for name in ("threads", "device"):
        value = getattr(options.execution, name)
        if value not in (None, "auto"):
            words += [f"--{name}", str(value)]
    if options.keep_snapshots:
        words += ["--keep-snapshots", str(options.keep_snapshots)]
    if options.tensorboard:
        words.append("--tensorboard")
    size = rank_and_size()[1]
    if size > 1:
        local = os.environ.get("LOCAL_WORLD_SIZE", size)
        words = ["torchrun", "--nproc-per-node", str(local), "-m", *words]
    return shlex.join(words)
