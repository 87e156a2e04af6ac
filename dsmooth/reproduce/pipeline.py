"""`dsmooth reproduce`: the whole paper in one folder that remembers what is done.

Train or take models, draw samples, measure bits/dim and Fréchet distances, train linear probes,
and report.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ReproductionStage, flatten
from ..data import ImageDataset
from ..distributed import barrier, broadcast_int, process_group, rank_and_size
from ..evaluate.features import make_extractor
from ..files import lock_folder, read_json, write_json
from ..machine import default_device, use_threads
from ..models import Models, load_models
from ..report.page import advice, bound_sentence, write_report
from ..runs import RunFolder
from ..train import train
from ..train.loop import load_data
from .cache import Mode
from .plan import PretrainedPlan, TrainingPlan
from .results import collect
from .stages import (
    STAGES,
    Sizes,
    compare_all,
    draw_all,
    probe_all,
    score_all,
    see_receptive_fields,
)


def reproduce(
    out: Path,
    plan: TrainingPlan | PretrainedPlan,
    *,
    sizes: Sizes | None = None,
    only: ReproductionStage | None = None,
    threads: int | None = None,
) -> int:
    """Carry out `plan` in the folder `out`, without repeating what an earlier call did there.

    Writes a run folder for each model that it trains, and samples/ with a .npz array and a .png
    grid for each method. The stages write bits_per_dim.json, frechet.json, probes.json and
    receptive_field.json. results.json has all numbers, report.html shows them. only: do this stage
    again and no other; the report has what is there. threads: CPU threads, None for torch's
    setting.
    Returns the exit status: 0, or 128 + the signal's number if it was stopped; the same call then
    goes on. Under torchrun all processes work together in every stage, and rank 0 writes. Raises
    ValueError for a folder that holds something else and whatever data, settings and runs raise.
    """
    with process_group():
        return _reproduce(out, plan, sizes, only, threads)


def _reproduce(
    out: Path,
    plan: TrainingPlan | PretrainedPlan,
    sizes: Sizes | None,
    only: ReproductionStage | None,
    threads: int | None,
) -> int:
    sizes = sizes or Sizes()
    use_threads(threads)
    if only not in (None, *STAGES):
        raise ValueError(f"only must be one of {', '.join(STAGES)}, got {only!r}")
    if sizes.extractor != "auto":
        make_extractor(sizes.extractor)  # a mistake is reported before any work
    place = default_device()
    first = rank_and_size()[0] == 0
    say_how_to_use_all_gpus()
    if isinstance(plan, PretrainedPlan):
        models = load_models(plan.models).to(place)
        train_set, test_set = plan.load_data(models)
        description = plan.description(models, test_set)
    else:
        train_set, test_set = load_data(plan.configs[0])
        description = plan.description()
    if first:
        claim_folder(out, description)
    barrier()
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(lock_folder(out, "another dsmooth reproduce"))
        try:
            if isinstance(plan, TrainingPlan):
                interrupted = train_all(out, plan, only)
                if interrupted:
                    print(f"stopped and saved in {out}; repeat the same command to go on")
                    return 128 + interrupted
                models = load_models([out / config.role for config in plan.configs]).to(place)
            measured, samples = run_stages(out, models, train_set, test_set, sizes, plan.seed, only)
        except KeyboardInterrupt:
            print(f"\nstopped; what is done is in {out}; repeat the same command to go on")
            return 130
        if not first:
            return 0

        results = collect(plan, models, train_set, test_set, samples) | measured
        write_json(out / "results.json", results)
        histories = {
            str(role): run.history() for role, run in models.runs.items() if run.is_finished()
        }
        write_report(out / "report.html", results, histories, samples)
    summarise(out, results)
    return 0


def run_stages(
    out: Path,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    sizes: Sizes,
    seed: int,
    only: ReproductionStage | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The numbers of every stage that is there, by their key in results.json, and the pictures."""
    mode: dict[str, Mode] = {
        stage: "go on" if only is None else "redo" if only == stage else "read" for stage in STAGES
    }
    splits, probes = (train_set, test_set), replace(sizes.probes, seed=seed)
    samples = draw_all(out / "samples", models, test_set, sizes.count, seed, mode["samples"])
    results = {
        "bits_per_dim": score_all(
            out / "bits_per_dim.json", models, test_set, sizes.scored_images, mode["bits-per-dim"]
        ),
        "frechet": compare_all(
            out / "frechet.json", models, samples, *splits, sizes.extractor, mode["frechet"]
        ),
        "receptive_field": see_receptive_fields(
            out / "receptive_field.json", mode["receptive-field"]
        ),
        "probes": probe_all(out / "probes.json", models, *splits, probes, mode["probes"]),
    }
    return {name: result for name, result in results.items() if result}, samples


def claim_folder(out: Path, description: dict[str, Any]) -> None:
    """Make `out` the folder of a reproduction. Raises ValueError if it is that of another."""
    path = out / "reproduction.json"
    mine = flatten(description)
    if path.exists():
        theirs = flatten(read_json(path))
        different = [key for key in mine if mine[key] != theirs.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"{out} holds another reproduction: its {key} is {theirs.get(key)}, not "
                f"{mine[key]}; choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and holds no reproduction; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def train_all(out: Path, plan: TrainingPlan, only: ReproductionStage | None) -> int | None:
    """Train what is not trained yet, one model after the other.

    Returns the number of the signal that stopped it, if any. Raises ValueError if something is left
    to train, but one stage `only` was asked for.
    """
    runs = {config.role: RunFolder(out / config.role) for config in plan.configs}
    untrained = [role for role, run in runs.items() if not run.is_finished()]
    if untrained and only:
        raise ValueError(
            f"--only {only} needs trained models, and {' and '.join(untrained)} in {out} "
            f"{'is' if len(untrained) == 1 else 'are'} not: repeat the command without --only first"
        )
    for config in plan.configs:
        run = runs[config.role]
        if broadcast_int(run.is_finished()):
            print(f"{config.role}: trained already")
            continue
        resume = bool(broadcast_int(run.can_resume()))
        minutes = f" for {config.budget:.3g} minutes" if config.budget and not resume else ""
        print(f"{config.role}: {'going on' if resume else 'training'}{minutes}", flush=True)
        result = train(config, run.path, resume=resume)
        if result.interrupted:
            return result.interrupted
    return None


def say_how_to_use_all_gpus() -> None:
    """One line where there are several GPUs and one process."""
    count = torch.cuda.device_count()
    if count > 1 and rank_and_size()[1] == 1:
        print(
            f"this machine has {count} GPUs, and one process uses one of them; to use all: "
            f"torchrun --nproc-per-node {count} -m dsmooth reproduce ..."
        )


def summarise(out: Path, results: dict[str, Any]) -> None:
    """Print the bound, the files and advice."""
    print(f"\n{bound_sentence(results)}")
    print(f"Pictures: {out / 'samples'}/*.png")
    print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    for sentence in advice(results):
        print(sentence)
