"""`dsmooth train`: settings from the command line, a run into a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from ..runs import default_folder
from .options import Train


def train(options: Train) -> int:
    """Carry out `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    if options.force and not options.resume:
        raise ValueError("--force is for --resume: a new run has no settings to change")
    settings = replace(options.settings, role=options.role)
    if options.print_config:
        print(json.dumps(asdict(settings), indent=2))
        return 0
    from ..train import train as train_run

    folder = options.out or default_folder(options.role)
    result = train_run(
        settings,
        folder,
        match_channels=options.match_channels and settings.data == "folder",
        resume=options.resume,
        force=options.force,
        device=options.how.device,
        threads=options.how.threads,
        tensorboard=options.tensorboard,
    )
    return 128 + result.interrupted if result.interrupted else 0
