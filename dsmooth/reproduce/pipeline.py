"""`dsmooth reproduce`: the paper's experiments in one folder that remembers what is done.

Train or take models, draw samples, measure bits/dim and Fréchet distances, train linear probes,
and report.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any, get_args

import torch
from jinja2 import UndefinedError

from ..config import OWN, Precision, ReproductionStage, check_one_of, flatten
from ..distributed import barrier, broadcast_int, process_group, rank_and_size
from ..evaluate.features import make_extractor
from ..files import lock_folder, read_json, write_json
from ..machine import choose_device, use_threads
from ..models import Models, load_models
from ..pretrained import TITLE
from ..report.page import advice, bound_sentence, write_report
from ..runs import RunFolder
from ..train import train
from ..train.loop import load_data
from .plan import PretrainedPlan, TrainingPlan
from .results import collect
from .stages import Sizes, Stages

WIDTH = 100  # of printed sentences


def reproduce(
    out: Path,
    plan: TrainingPlan | PretrainedPlan,
    *,
    sizes: Sizes | None = None,
    only: ReproductionStage | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> int:
    """Carry out `plan` in the folder `out`, without repeating what an earlier call did there.

    Writes a run folder for each model that it trains, and samples/ with a .npz array and a .png
    grid for each method. The stages write bits_per_dim.json, frechet.json, probes.json and
    receptive_field.json. results.json has all numbers, report.html shows them. only: do this stage
    again and no other; the report has what is there. threads: CPU threads, None for torch's
    setting. device: "auto", "cpu", "cuda" or "cuda:N". precision: of the models in the stages;
    "auto" draws by bfloat16 on a CUDA device and takes float32 for all else.
    Returns the exit status: 0, or 128 + the signal's number if it was stopped; the same call then
    goes on. Under torchrun all processes work together in every stage, and rank 0 writes. Raises
    ValueError for a folder that holds something else and whatever data, settings and runs raise.
    """
    sizes = sizes or Sizes()
    with process_group(), contextlib.ExitStack() as stack:
        use_threads(threads)
        check_one_of("precision", precision, get_args(Precision))
        if only is not None:
            check_one_of("only", only, get_args(ReproductionStage))
        if sizes.extractor != "auto":
            make_extractor(sizes.extractor)  # a mistake is reported before any work
        place, first = choose_device(device), rank_and_size()[0] == 0
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
        if first:
            stack.enter_context(lock_folder(out, "another dsmooth reproduce"))
        try:
            if isinstance(plan, TrainingPlan):
                interrupted = train_all(out, plan, only, device)
                if interrupted:
                    print(f"stopped and saved in {out}; repeat the same command to go on")
                    return 128 + interrupted
                models = load_models([out / config.role for config in plan.configs]).to(place)
            stages = Stages(out, models, train_set, test_set, sizes, plan.seed, only, precision)
            measured, samples = stages.run()
        except KeyboardInterrupt:
            print(f"\nstopped; what is done is in {out}; repeat the same command to go on")
            return 130
        if not first:
            return 0
        results = collect(plan, models, train_set, test_set, samples) | measured
        histories = {
            str(role): run.history() for role, run in models.runs.items() if run.is_finished()
        }
        again = longer_training(plan, models, results["data"]["embedded_subset"])
        try:
            write_report(out / "report.html", results, histories, samples, again)
            sentences = [bound_sentence(results), *advice(results, again)]
        except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
            raise ValueError(
                f"{out} holds a result that cannot be reported ({error!r}): only=STAGE computes a "
                "stage again"
            ) from error
        write_json(out / "results.json", results)
    print(f"\n{sentences[0]}")
    if samples:
        print(f"Pictures: {out / 'samples'}/*.png")
    print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    for sentence in sentences[1:]:
        print(wrapped(sentence))
    return 0


def wrapped(sentence: str) -> str:
    """A sentence in lines, none of which ends within a command, for these are copied."""
    whole = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), sentence)
    lines = textwrap.fill(whole, WIDTH, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def longer_training(
    plan: TrainingPlan | PretrainedPlan, models: Models, embedded: bool
) -> list[str]:
    """Commands that train such models for longer, or the pair that comes with the package anew."""
    if plan.name == TITLE:
        return ["dsmooth reproduce --from-scratch --out from-scratch"]
    if isinstance(plan, TrainingPlan):
        if plan.budget is None:
            return []
        minutes, config = max(60, round(8 * plan.budget)), plan.configs[0]
        words = ["dsmooth", "reproduce", "--preset", plan.name, "--budget", str(minutes)]
        words += ["--out", f"reproduction-{minutes}", "--seed", str(plan.seed)]
        if embedded:
            words += ["--data-dir", "data", "--download"]
        elif config.data_dir is not None:
            words += ["--data-dir", config.data_dir]
        return [shlex.join(words)]
    commands = []
    for role, run in models.runs.items():
        images, given = models.settings[role].images, models.settings[role].data == OWN
        if run.can_resume() and run.is_finished() and images and not given:
            words = ["dsmooth", "train", role, "--out", str(run.path), "--resume"]
            commands.append(shlex.join([*words, "--images", str(2 * images)]))
    return commands


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
                f"{mine[key]}; choose another folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and holds no reproduction; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def train_all(
    out: Path, plan: TrainingPlan, only: ReproductionStage | None, device: str
) -> int | None:
    """Train what is not trained yet, one model after the other.

    Returns the number of the signal that stopped it, if any. Raises ValueError if something is left
    to train, but one stage `only` was asked for.
    """
    runs = {config.role: RunFolder(out / config.role) for config in plan.configs}
    untrained = [role for role, run in runs.items() if not run.is_finished()]
    if untrained and only:
        raise ValueError(
            f"only={only} needs trained models, and {' and '.join(untrained)} in {out} "
            f"{'is' if len(untrained) == 1 else 'are'} not: repeat the call without it first"
        )
    for config in plan.configs:
        run = runs[config.role]
        if broadcast_int(run.is_finished()):
            print(f"{config.role}: trained already")
            continue
        resume = bool(broadcast_int(run.can_resume()))
        minutes = f" for {config.budget:.3g} minutes" if config.budget and not resume else ""
        print(f"{config.role}: {'going on' if resume else 'training'}{minutes}", flush=True)
        result = train(config, run.path, resume=resume, device=device, progress=True)
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
