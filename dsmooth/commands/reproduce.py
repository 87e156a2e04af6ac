"""`dsmooth reproduce`: a plan from the command line, carried out in a folder."""

from __future__ import annotations

from ..config import ProbeSettings
from ..reproduce import BUDGET_MINUTES, Given, Plan, Sizes, plan_from_preset
from ..reproduce import reproduce as carry_out
from .options import Reproduce


def reproduce(options: Reproduce) -> int:
    """Carry out `dsmooth reproduce`; returns the exit status."""
    probes = ProbeSettings(
        train_images=options.probe_train_images, test_images=options.probe_test_images
    )
    sizes = Sizes(options.count, options.scored_images, probes, options.extractor)
    plan: Plan | Given
    if options.models:
        if options.budget is not None or options.download:
            name = "--download" if options.budget is None else "--budget"
            raise ValueError(f"{name} is for training, and with --models nothing is trained")
        plan = Given(options.models, options.data, options.data_dir, options.seed)
    else:
        if options.data is not None:
            raise ValueError("--data goes with --models; what is trained, --preset says")
        plan = plan_from_preset(
            options.preset,
            budget=BUDGET_MINUTES if options.budget is None else options.budget,
            data_dir=options.data_dir,
            download=options.download,
            seed=options.seed,
        )
    return carry_out(options.out, plan, sizes=sizes, only=options.only, threads=options.threads)
