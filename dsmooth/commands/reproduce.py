"""`dsmooth reproduce`: the paper's experiments in one folder, where a stopped call resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..config import ProbeSettings, TrainConfig
from ..evaluate.features import make_extractor
from ..evaluate.likelihood import check_images
from ..files import check_writable
from ..machine import choose_device, use_threads
from ..pretrained import DEFAULT, load, packaged
from ..report.reproduce import Choices, Stages, own_folder, planned_runs, train_runs
from ..report.sections import write_report
from ..results import bits_table
from .options import DEFAULT_PRESET, Reproduce
from .shared import choose_data

BUDGET_MINUTES = 8.0


def reproduce(options: Reproduce, runs: Sequence[TrainConfig] | None = None) -> int:
    """Run `dsmooth reproduce`: train, or load models; then run the stages that are not done.

    Writes a run folder for each model that it trains, the files of the stages, results.json with
    all numbers, and report.html. runs: the models to train, by default those of the options.
    Returns the exit status: 0, or 128 + the signal's number if training was stopped; the same call
    then resumes.
    """
    out, execution = options.out, options.execution
    check_writable(out / "report.html")
    runs, choices = runs_of(options) if runs is None else runs, choices_of(options)
    use_threads(execution.threads)
    with own_folder(out, choices, runs) as record:
        if stopped := train_runs(runs, out, execution.device):
            print(f"stopped and saved in {out}; repeat the same command to resume")
            return 128 + stopped
        # By folder: a folder of the user's may have the name of the packaged models.
        folders = packaged()[DEFAULT], packaged()[f"{DEFAULT}-plain"]
        names = options.models or [out / run.role for run in runs] or folders
        models = load(*names, device=choose_device(execution.device))
        data = choose_data(models, options.dataset)
        stages = Stages(out, models, data.load("train"), data.load("test"), choices)
        check_images(models.pair, stages.test_set)
        pictures = stages.draw_all()
        title = f"models that {'were given' if options.models else 'come with dsmooth'}"
        record.result = stages.report(options.preset or DEFAULT_PRESET if runs else title, pictures)
        record.write()
    write_report(out / "report.html", record.result, pictures)
    bits_table(record.result.bits).show()
    print(f"Pictures: {out / 'samples'}/*.png")
    print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    return 0


def runs_of(options: Reproduce) -> tuple[TrainConfig, ...]:
    """The pair, then the plain baseline, in the budget together; none where nothing is trained."""
    if options.budget is None and options.preset is None and not options.download:
        return ()
    if options.models:
        raise ValueError("--models are trained: leave out --budget, --preset and --download")
    chosen = {name: x for name, x in asdict(options.dataset).items() if x is not None}
    if "data_dir" in chosen:
        chosen["data_dir"] = str(chosen["data_dir"])
    minutes = BUDGET_MINUTES if options.budget is None else options.budget
    name, chosen["download"] = options.preset or DEFAULT_PRESET, options.download
    return planned_runs(name, minutes, seed=options.seed, **chosen)


def choices_of(options: Reproduce) -> Choices:
    """What the stages measure. Raises ValueError for an unknown extractor, before any work."""
    if options.extractor != "auto":
        make_extractor(options.extractor)
    probes = ProbeSettings(
        train_images=options.probe_train_images,
        test_images=options.probe_test_images,
        seed=options.seed,
    )
    same = {
        name: getattr(options, name) for name in ("count", "scored_images", "extractor", "seed")
    }
    return Choices(probes=probes, precision=options.execution.precision, **same)
