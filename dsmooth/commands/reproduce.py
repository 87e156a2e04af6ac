"""`dsmooth reproduce`: a plan from the command line, carried out in a folder."""

from __future__ import annotations

from pathlib import Path

from ..config import ProbeSettings
from ..pretrained import DEFAULT, TITLE, find
from ..reproduce import BUDGET_MINUTES, Given, Plan, Sizes, plan_from_preset
from ..reproduce import reproduce as carry_out
from .options import DEFAULT_PRESET, Reproduce


def reproduce(options: Reproduce) -> int:
    """Carry out `dsmooth reproduce`; returns the exit status."""
    probes = ProbeSettings(
        train_images=options.probe_train_images, test_images=options.probe_test_images
    )
    sizes = Sizes(options.count, options.scored_images, probes, options.extractor)
    plan = choose_plan(options)
    return carry_out(options.out, plan, sizes=sizes, only=options.only, threads=options.threads)


def choose_plan(options: Reproduce) -> Plan | Given:
    """What to train, or whose models to take. Raises ValueError for options that do not fit."""
    training = {
        "--from-scratch": options.from_scratch,
        "--preset": options.preset is not None,
        "--budget": options.budget is not None,
    }
    asked = [name for name, given in training.items() if given]
    if asked and options.models:
        raise ValueError(f"{asked[0]} is for training, and with --models nothing is trained")
    if not asked:
        if options.download:
            raise ValueError("--download is for training: add --from-scratch")
        if options.models:
            return Given(options.models, options.data, options.data_dir, options.seed)
        folders = (Path(DEFAULT), find(DEFAULT) / "plain")
        return Given(folders, options.data, options.data_dir, options.seed, TITLE)
    if options.data is not None:
        raise ValueError("--data goes with --models; what is trained, --preset says")
    return plan_from_preset(
        options.preset or DEFAULT_PRESET,
        budget=BUDGET_MINUTES if options.budget is None else options.budget,
        data_dir=options.data_dir,
        download=options.download,
        seed=options.seed,
    )
