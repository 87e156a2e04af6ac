"""`dsmooth reproduce`: a plan from the command line, carried out in a folder."""

from __future__ import annotations

from pathlib import Path

from ..config import ProbeSettings
from ..files import check_writable
from ..pretrained import DEFAULT, TITLE, find
from ..reproduce import BUDGET_MINUTES, PretrainedPlan, Sizes, TrainingPlan, plan_from_preset
from ..reproduce import reproduce as carry_out
from .options import DEFAULT_PRESET, Reproduce


def reproduce(options: Reproduce) -> int:
    """Carry out `dsmooth reproduce`; returns the exit status."""
    probes = ProbeSettings(
        train_images=options.probe_train_images, test_images=options.probe_test_images
    )
    check_writable(options.out / "report.html")
    sizes = Sizes(options.count, options.scored_images, probes, options.extractor)
    how = options.execution
    return carry_out(
        options.out,
        choose_plan(options),
        sizes=sizes,
        only=options.only,
        threads=how.threads,
        device=how.device,
        precision=how.precision,
    )


def choose_plan(options: Reproduce) -> TrainingPlan | PretrainedPlan:
    """The plan for these options. Raises ValueError for options that do not fit together."""
    training = {
        "--from-scratch": options.from_scratch,
        "--preset": options.preset is not None,
        "--budget": options.budget is not None,
    }
    chosen = [name for name, is_set in training.items() if is_set]
    if chosen and options.models:
        raise ValueError(f"{chosen[0]} is for training, and with --models nothing is trained")
    dataset = options.dataset
    data_dir = None if dataset.data_dir is None else str(dataset.data_dir)
    if not chosen:
        if options.download:
            raise ValueError("--download is for training: add --from-scratch")
        folders = options.models or (Path(DEFAULT), find(DEFAULT) / "plain")
        name = "models that were given" if options.models else TITLE
        return PretrainedPlan(
            folders, dataset.data, data_dir, dataset.image_size, options.seed, name
        )
    for name in ("data", "image_size"):
        if getattr(dataset, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} goes with --models; what is trained, --preset says")
    return plan_from_preset(
        options.preset or DEFAULT_PRESET,
        budget=BUDGET_MINUTES if options.budget is None else options.budget,
        data_dir=data_dir,
        download=options.download,
        seed=options.seed,
    )
