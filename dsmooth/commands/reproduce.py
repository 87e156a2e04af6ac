"""`dsmooth reproduce`: the paper's experiments in one folder, where a stopped call resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from ..config import Role, TrainConfig
from ..data import SPLITS
from ..evaluate.features import make_extractor
from ..evaluate.likelihood import check_dataset
from ..experiments import PROBES, Report, ReproduceSettings, Stages
from ..fields import SettingError
from ..files import printable
from ..machine import choose_device
from ..presets import DEFAULT_PRESET, preset
from ..pretrained import DEFAULT, images_for, load, packaged
from ..report.sections import write_report
from ..results import bits_table
from ..training import train
from ..work import Record, once, own_folder
from .options import Reproduce

BUDGET_MINUTES = 8.0
# Each model's part of the training time; the pair matters most.
SHARES: dict[Role, float] = {"noisy": 0.4, "denoiser": 0.4, "plain": 0.2}
# The least training between two evaluations of held-out images.
EVALUATION_MINUTES = 0.4


def reproduce(options: Reproduce, runs: Sequence[TrainConfig] | None = None) -> int:
    """Run `dsmooth reproduce`: train, or load models; then run the stages that are not done.

    runs: the models to train, by default those of the options. Returns the exit status: 0, or 128 +
    the signal's number if training was stopped; the same call then resumes.
    """
    out, execution, (page,) = options.out, options.execution, options.outputs
    runs = runs_of(options) if runs is None else runs
    if options.extractor != "auto":
        make_extractor(options.extractor)  # an unknown one is refused before any work
    choices = ReproduceSettings(
        options.count,
        probes=replace(PROBES, seed=options.seed),
        extractor=options.extractor,
        seed=options.seed,
        precision=execution.precision,
    )
    request = {**asdict(choices), "runs": {run.role: asdict(run) for run in runs}}
    with own_folder(out, "another dsmooth reproduce"):
        record = Record(out / "results.json", request, Report)
        record.begin(out)
        for config in runs:
            path, device = out / config.role, execution.device
            done = train(config, path, resume=True, device=device, progress=True)
            if done.interrupted:
                print(f"stopped and saved in {printable(out)}; repeat the same command to resume")
                return 128 + done.interrupted
        # By folder: a folder of the user's may have the name of the packaged models.
        folders = packaged()[DEFAULT], packaged()[f"{DEFAULT}-plain"]
        names = options.models or [out / run.role for run in runs] or folders
        models = load(*names, device=choose_device(execution.device))
        train_set, test_set = images_for(models, SPLITS, **vars(options.dataset))
        stages = Stages(out, models, train_set, test_set, choices)
        check_dataset(models.pair, stages.test_set)
        samples, held_out = stages.pictures()
        given = "models that were given" if options.models else "models that come with dsmooth"
        name = options.preset or DEFAULT_PRESET if runs else given
        report = record.keep(stages.report(name, samples, held_out))
    once(write_report, page, report, samples, held_out)
    bits_table(report.bits).show()
    print(f"Pictures: {printable(out / 'samples')}/*.png")
    print(f"Report:   {printable(page)} (for a browser; it needs no network)")
    return 0


def runs_of(options: Reproduce) -> tuple[TrainConfig, ...]:
    """The pair, then the plain baseline, in the budget together; none where nothing is trained."""
    if options.budget is None and options.preset is None and not options.download:
        return ()
    if options.models:
        words = "are trained: leave out"
        raise SettingError("models", words, budget=None, preset=None, download=None)
    changes = {name: x for name, x in asdict(options.dataset).items() if x is not None}
    changes |= {"seed": options.seed, "download": options.download}
    minutes = BUDGET_MINUTES if options.budget is None else options.budget
    runs = []
    for role, share in SHARES.items():
        config, budget = preset(options.preset or DEFAULT_PRESET, role), share * minutes
        config = replace(config, images=None, budget=budget, **changes)
        # A short run must not spend its time on evaluations.
        evaluations = max(1, min(config.evaluations, int(budget / EVALUATION_MINUTES)))
        runs.append(replace(config, evaluations=evaluations))
    return tuple(runs)
