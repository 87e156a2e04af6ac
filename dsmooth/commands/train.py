"""`dsmooth train`: settings from the command line, runs into folders."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from ..config import DERIVED, Role, TrainConfig
from ..distributed import barrier, process_group
from ..files import check_writable, read_json
from ..machine import use_threads
from ..presets import check_one_length, fine_tuning, preset
from ..runs import RunFolder, run_config
from ..training import tensorboard
from ..training.beginning import (
    check_new_run,
    find_initial,
    load_data,
)
from ..training.loop import train_run
from ..training.plan import RunPlan, plan_runs
from ..training.resolve import RunRequest
from .options import DEFAULT_PRESET
from .options_train import RGB_PRESET, Train


def train(options: Train) -> int:
    """Run `dsmooth train`; returns the exit status, 128 + the signal's number if stopped."""
    check_options(options)
    plans = plan_runs(options.role, options.out)
    requests = [run_request(options, plan) for plan in plans]
    if options.print_config:
        print_plan(plans, requests)
        return 0
    use_threads(options.execution.threads)
    for plan in plans:
        check_writable(RunFolder(plan.folder).config)
    if len(plans) > 1:
        check_pair(options, plans, requests)
    for plan, request in zip(plans, requests, strict=True):
        result = train_run(
            request,
            partial(load_data, progress=True),
            RunFolder(plan.folder),
            resume=options.resume,
            device=options.execution.device,
            on_evaluation=tensorboard(plan.folder / "tensorboard") if options.tensorboard else None,
            progress=True,
            started=options.started if plan is plans[0] else time.monotonic(),
        )
        if result.interrupted:
            print(f"{options.role}: the same command with --resume continues")
            return 128 + result.interrupted
    print(f"{options.role}: {next_step(plans)}")
    return 0


def print_plan(plans: Sequence[RunPlan], requests: Sequence[RunRequest]) -> None:
    """Print the settings of a run as JSON, or the plan of several with the settings of each."""
    settings = [asdict(request.config()) for request in requests]
    pairs = zip(plans, settings, strict=True)
    printed = {plan.folder.name: {**asdict(plan), "settings": values} for plan, values in pairs}
    print(json.dumps(printed if len(plans) > 1 else settings[0], indent=2, default=str))


def check_options(options: Train) -> None:
    """Raise ValueError for options that do not go together."""
    given = {*options.settings}
    check_one_length(given)
    if options.force and not options.resume:
        raise ValueError("--force is for --resume: a new run has no settings to change")
    if options.folder is not None and {"data", "data_dir"} & given:
        raise ValueError(f"{options.folder} is a folder of images: leave --data and --data-dir out")
    if options.role == "pair" and options.config is not None:
        raise ValueError("--config has the settings of one run, and a pair is two: give a role")


def run_request(options: Train, plan: RunPlan) -> RunRequest:
    """The settings given, over those of --config, of the run to resume, or of a preset."""
    stored = RunFolder(plan.folder)
    resumed = stored.read_config()[0] if options.resume and stored.config.exists() else None
    if resumed is not None and resumed.role != plan.role:
        raise ValueError(
            f"{plan.folder} holds another run: its role is {resumed.role}, not {plan.role}"
        )
    given = {**options.settings, "role": plan.role}
    if options.folder is not None:
        given |= {"data": "folder", "data_dir": str(options.folder)}
    if resumed is None and options.config is None:
        given |= fine_tuning(given)
    rgb = None
    if options.config is not None:  # --print-config prints no size
        values = {"height_and_width": (0, 0), **read_json(options.config)}
        start = run_config(values, options.config)[0]
    elif resumed is not None and options.preset is None:
        start = resumed
    else:
        colours = given.get("data") in ("cifar10", "celeba")
        start = start_of(options, plan.role, RGB_PRESET if colours else DEFAULT_PRESET)
        rgb = start_of(options, plan.role, RGB_PRESET)
    if "budget" in given:
        given["budget"] = given["budget"] and given["budget"] * plan.budget_fraction
        given["images"] = None
    keeps_channels = "image_channels" in options.model or "init" in options.settings
    return RunRequest(start, given, options.model, rgb, not keeps_channels, options.force)


def start_of(options: Train, role: Role, default: str) -> TrainConfig:
    """The settings of the preset given, or of a default one, with the network of --init."""
    name, changes = options.preset or default, dict[str, object]()
    data = "folder" if options.folder is not None else options.settings.get("data")
    data = data or preset(name, role).data
    if data != "celeba" and not (data == "folder" and options.preset is not None):
        changes["image_size"] = None  # these have a size of their own
    if (source := options.settings.get("init")) is not None:
        initial = find_initial(source, role)
        if (noise := initial.smoothing) is not None:
            changes |= {"smoothing": noise.kind, "scale": noise.scale}
        # The data decide the classes.
        network = vars(initial.networks[role].config).items()
        changes |= {k: value for k, value in network if k not in DERIVED}
    return preset(name, role, **changes)


def check_pair(options: Train, plans: Sequence[RunPlan], requests: Sequence[RunRequest]) -> None:
    """Raise ValueError, before the first run is trained, if a later one cannot begin."""
    with process_group():
        for plan, request in zip(plans, requests, strict=True):
            stored = RunFolder(plan.folder)
            if not options.resume:
                check_new_run(stored, request.config())
        barrier()  # if one process refuses, none of them trains


def next_step(plans: Sequence[RunPlan]) -> str:
    """What to do with the trained models."""
    if len(plans) > 1:
        seconds = {plan.folder.name: RunFolder(plan.folder).record().seconds for plan in plans}
        minutes = ", ".join(f"{name} {(spent or 0) / 60:.1f}" for name, spent in seconds.items())
        path = shlex.quote(str(plans[-1].folder.parent))
        return f"minutes of training: {minutes}; next: `dsmooth sample {path}`"
    # NOISY and DENOISER are the folders of other runs.
    (plan,) = plans
    path, config = shlex.quote(str(plan.folder)), RunFolder(plan.folder).read_config()[0]
    label = " --label each" * bool(config.classes)
    step = {
        "noisy": f"train its denoiser, then `dsmooth sample {path} DENOISER{label}`",
        "denoiser": f"`dsmooth sample NOISY {path}{label}`, with the folder of its noisy model",
        "plain": f"`dsmooth sample {path}{label}`, or `dsmooth evaluate bpd {path}`",
    }[plan.role]
    return f"next: {step}"
