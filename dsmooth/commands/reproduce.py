"""`dsmooth reproduce`: the paper's experiments in one folder, where a stopped call resumes.

Train or take models, draw samples, measure bits/dim and Fréchet distances, train linear probes,
and report.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..config import Role, TrainConfig
from ..data import ImageDataset
from ..distributed import barrier, broadcast_int, process_group, rank_and_size
from ..errors import SettingError
from ..evaluate.batches import check_images
from ..evaluate.features import make_extractor
from ..fields import check_number
from ..files import check_writable, lock_folder
from ..machine import choose_device, use_threads
from ..presets import preset
from ..pretrained import DEFAULT, TITLE, Loaded, load, packaged
from ..probe_settings import ProbeSettings
from ..record import Record
from ..report.contents import Report
from ..report.describe import curve_of
from ..report.sections import write_report
from ..reproduce import Stages
from ..runs import RunFolder
from ..tables import bits_table
from ..training import train
from ..training.beginning import load_data
from .options import DEFAULT_PRESET, Reproduce
from .shared import choose_data

# Each model's part of the training time; the pair matters most.
SHARES: dict[Role, float] = {"noisy": 0.4, "denoiser": 0.4, "plain": 0.2}
# The least training between two evaluations of held-out images.
EVALUATION_MINUTES = 0.4
BUDGET_MINUTES = 8.0


def reproduce(options: Reproduce, runs: Sequence[TrainConfig] | None = None) -> int:
    """Run `dsmooth reproduce`: train, or load models; then run the stages that are not done.

    Writes a run folder for each model that it trains, the records of the stages, results.json with
    all numbers, and report.html. runs: the models to train, by default those of the options.
    Returns the exit status, negative where the process must leave at once: 0, or 128 + the signal's
    number if it was stopped; the same call then resumes. Under torchrun all processes work together
    in every stage, and rank 0 writes.
    """
    check_writable(options.out / "report.html")
    runs = runs_to_train(options) if runs is None else runs
    check_options(options)
    out = options.out
    with process_group(), contextlib.ExitStack() as stack:
        use_threads(options.execution.threads)
        device = choose_device(options.execution.device)
        budget = sum(config.budget or 0.0 for config in runs) or None
        if runs:
            title = options.preset or DEFAULT_PRESET
            train_set, test_set = load_data(runs[0], progress=True)
            settings = {run.role: asdict(run) for run in runs}
            request: dict[str, object] = {"budget": budget, "runs": settings}
        else:
            title = "models that were given" if options.models else TITLE
            models, train_set, test_set = load_requested_models(options, device)
            request = {"data": test_set.source, "weights_sha256": models.digests()}
        request = {"name": title, "seed": options.seed, **request}
        record = stack.enter_context(own_folder(out, request))
        try:
            for config in runs:
                interrupted = train_one(config, RunFolder(out / config.role), options)
                if interrupted:
                    print(f"stopped and saved in {out}; repeat the same command to resume")
                    return 128 + interrupted
            if runs:
                folders = [out / config.role for config in runs]
                models = load(*folders, device=device).checked()
            stages = make_stages(options, models, train_set, test_set)
            report, pictures = stages.report(title)
        except KeyboardInterrupt:
            print(f"\nstopped; finished results are in {out}; repeat the same command to resume")
            return -130  # at once, without the threads at work
        record.finish(report)
        if rank_and_size()[0] == 0:
            curves = {
                str(role): curve_of(run) for role, run in models.runs.items() if run.is_finished()
            }
            write_report(out / "report.html", report, curves, pictures)
            bits_table(report.bits).show()
            print(f"Pictures: {out / 'samples'}/*.png")
            print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    return 0


def runs_to_train(options: Reproduce) -> tuple[TrainConfig, ...]:
    """The pair, then the plain baseline, in the budget together; none where models are given.

    Raises ValueError for options that do not fit together, and for an unknown preset.
    """
    chosen = ["--from-scratch"] if options.from_scratch else []
    chosen += ["--preset"] if options.preset is not None else []
    chosen += ["--budget"] if options.budget is not None else []
    if chosen and options.models:
        raise ValueError(f"{chosen[0]} is for training, and with --models nothing is trained")
    if not chosen:
        if options.download:
            raise ValueError("--download is for training: add --from-scratch")
        return ()
    for name in ("data", "image_size"):
        if getattr(options.dataset, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} goes with --models; what is trained, --preset says")
    budget = BUDGET_MINUTES if options.budget is None else options.budget
    if not 0 < budget < math.inf:
        raise SettingError("budget", f"must be a positive number of minutes, got {budget}")
    data_dir, runs = options.dataset.data_dir, []
    for role, share in SHARES.items():
        settings, minutes = preset(options.preset or DEFAULT_PRESET, role), share * budget
        config = replace(
            settings,
            images=None,
            budget=minutes,
            data_dir=None if data_dir is None else str(data_dir),
            download=options.download,
            seed=options.seed,
            # A short run must not spend its time on evaluations.
            evaluations=max(1, min(settings.evaluations, int(minutes / EVALUATION_MINUTES))),
        )
        runs.append(config)
    return tuple(runs)


def check_options(options: Reproduce) -> None:
    """Raise ValueError for options that do not fit, before any work."""
    for name in ("count", "scored_images", "probe_train_images", "probe_test_images"):
        check_number(name, getattr(options, name))
    if options.extractor != "auto":
        make_extractor(options.extractor)


def load_requested_models(
    options: Reproduce, device: torch.device
) -> tuple[Loaded, ImageDataset, ImageDataset]:
    """The models of the options, or the packaged ones, and their training and test images."""
    # By folder: a folder of the user's may have the name of the packaged models.
    names = options.models or (packaged()[DEFAULT], packaged()[f"{DEFAULT}-plain"])
    models = load(*names, device=device).checked()
    choice = choose_data(models, options.dataset)
    train_set, test_set = choice.load("train"), choice.load("test")
    check_images(models.pair, test_set)
    return models, train_set, test_set


def make_stages(
    options: Reproduce, models: Loaded, train_set: ImageDataset, test_set: ImageDataset
) -> Stages:
    """The stages that the options ask for."""
    train, test, seed = options.probe_train_images, options.probe_test_images, options.seed
    return Stages(
        options.out,
        models,
        train_set,
        test_set,
        count=options.count,
        scored_images=options.scored_images,
        probes=ProbeSettings(train_images=train, test_images=test, seed=seed),
        extractor=options.extractor,
        seed=seed,
        precision=options.execution.precision,
    )


@contextlib.contextmanager
def own_folder(out: Path, request: Mapping[str, object]) -> Iterator[Record[Report, str]]:
    """Keep other processes, and other reproductions, out of a folder; its record of the report.

    Raises ValueError for a folder of something else.
    """
    first, path = rank_and_size()[0] == 0, out / "results.json"
    if first and not path.exists() and out.exists() and (out.is_file() or [*out.iterdir()]):
        raise ValueError(f"{out} exists and is not a reproduction; choose another folder")
    with lock_folder(out, "another dsmooth reproduce") if first else contextlib.nullcontext():
        record = Record(path, request, Report, str)
        record.begin()
        barrier()
        yield record


def train_one(config: TrainConfig, run: RunFolder, options: Reproduce) -> int | None:
    """Train a model unless that is done; the number of the signal that stopped it, if any."""
    if broadcast_int(run.is_finished()):
        print(f"{config.role}: trained already")
        return None
    resume = bool(broadcast_int(run.can_resume()))
    minutes = f" for {config.budget:.3g} minutes" if config.budget and not resume else ""
    print(f"{config.role}: {'resuming' if resume else 'training'}{minutes}", flush=True)
    device = options.execution.device
    return train(config, run.path, resume=resume, device=device, progress=True).interrupted
