"""`dsmooth reproduce`: the paper's experiments in one folder that remembers what is done.

Train or take models, draw samples, measure bits/dim and Fréchet distances, train linear probes,
and report.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jinja2 import UndefinedError
from torch import Tensor

from .._version import __version__
from ..config import OWN, Precision, ReproductionStage, Role, TrainConfig
from ..data import ImageDataset
from ..distributed import barrier, broadcast_int, process_group, rank_and_size
from ..evaluate.batches import check_images
from ..evaluate.features import make_extractor
from ..evaluate.sources import choose_data
from ..fields import check_one_of, difference, flatten
from ..files import lock_folder, read_json, write_json
from ..machine import choose_device, use_threads
from ..models import Models, load_models
from ..pictures import is_diverged
from ..presets import preset
from ..pretrained import TITLE
from ..report.page import write_report
from ..runs import RunFolder
from ..training import train
from ..training.beginning import load_data
from .results import card_numbers, describe_machine, describe_model
from .stages import Sizes, Stages

# Each model's part of the training time; the pair matters most.
SHARES: dict[Role, float] = {"noisy": 0.4, "denoiser": 0.4, "plain": 0.2}
# The least training between two evaluations of held-out images.
EVALUATION_MINUTES = 0.4
BUDGET_MINUTES = 8.0


@dataclass(frozen=True)
class TrainingPlan:
    """The runs that a reproduction trains, one after the other.

    configs: one noisy model and its denoiser; a plain one may follow. name: the source of the
    settings, for the report. budget: minutes of training in all, or None if the configs say how
    many images.
    """

    name: str
    configs: tuple[TrainConfig, ...]
    budget: float | None = None

    @property
    def seed(self) -> int:
        """The seed of weights, noise and samples."""
        return self.configs[0].seed

    def description(self) -> dict[str, Any]:
        """All that decides the results, as JSON."""
        runs = {config.role: asdict(config) for config in self.configs}
        for settings in runs.values() if self.budget else ():
            del settings["budget"], settings["evaluations"]  # parts of the budget in all
        return {"name": self.name, "budget": self.budget, "runs": runs}


def plan_from_preset(
    name: str,
    *,
    budget: float = BUDGET_MINUTES,
    data_dir: str | None = None,
    download: bool = False,
    seed: int = 0,
) -> TrainingPlan:
    """The pair, then the plain baseline, in `budget` minutes together.

    Raises ValueError for an unknown preset or a budget that is not positive.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"`budget` must be a positive number of minutes, got {budget}")
    configs = []
    for role, share in SHARES.items():
        settings, minutes = preset(name, role), share * budget
        config = replace(
            settings,
            images=None,
            budget=minutes,
            data_dir=data_dir,
            download=download,
            seed=seed,
            # A short run must not spend its time on evaluations.
            evaluations=max(1, min(settings.evaluations, int(minutes / EVALUATION_MINUTES))),
        )
        configs.append(config)
    return TrainingPlan(name, tuple(configs), budget)


@dataclass(frozen=True)
class PretrainedPlan:
    """A reproduction with models that are trained already.

    models: names for `load_models`: a pair and perhaps a plain model. data, data_dir: the images;
    by default the data of the runs, or the embedded MNIST subset for a saved pair. name: title of
    the models in the report.
    """

    models: tuple[Path, ...]
    data: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    seed: int = 0
    name: str = "models that were given"
    budget: ClassVar[None] = None

    def load_data(self, models: Models) -> tuple[ImageDataset, ImageDataset]:
        """Training and test images. Raises ValueError if their shape is not the pair's."""
        choice = choose_data(models, self.data, self.data_dir, self.image_size)
        train_set, test_set = choice.load("train"), choice.load("test")
        for data in (train_set, test_set):
            check_images(models.pair, data)
        return train_set, test_set

    def description(self, models: Models, test_set: ImageDataset) -> dict[str, Any]:
        """The facts that tell this reproduction from others, as JSON."""
        return {
            "name": self.name,
            "seed": self.seed,
            "data": test_set.source,
            "weights_sha256": models.digests(),
        }


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
    "auto" draws by bfloat16 on a CUDA device, takes it for the features of probes where the device
    has instructions for it, and float32 for all else.
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
        target, first = choose_device(device), rank_and_size()[0] == 0
        say_how_to_use_all_gpus()
        if isinstance(plan, PretrainedPlan):
            models = load_models(plan.models).to(target)
            train_set, test_set = plan.load_data(models)
            description = plan.description(models, test_set)
        else:
            check_trained(out, plan, only)
            train_set, test_set = load_data(plan.configs[0], progress=True)
            description = plan.description()
        if first:
            claim_folder(out, description)
            stack.enter_context(lock_folder(out, "another dsmooth reproduce"))
        barrier()
        try:
            if isinstance(plan, TrainingPlan):
                interrupted = train_all(out, plan, device)
                if interrupted:
                    print(f"stopped and saved in {out}; repeat the same command to go on")
                    return 128 + interrupted
                models = load_models([out / config.role for config in plan.configs]).to(target)
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
            bound, *advice = write_report(out / "report.html", results, histories, samples, again)
        except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
            raise ValueError(
                f"{out} holds a result that cannot be reported ({error!r}): `only=STAGE` computes "
                "a stage again"
            ) from error
        write_json(out / "results.json", results)
    print(f"\n{bound}")
    if samples:
        print(f"Pictures: {out / 'samples'}/*.png")
    print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    for sentence in advice:
        print(wrapped(sentence))
    return 0


def wrapped(sentence: str) -> str:
    """A sentence in lines, none of which ends within a command, for these are copied."""
    whole = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), sentence)
    lines = textwrap.fill(whole, 100, break_long_words=False, break_on_hyphens=False)
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
    """Make `out` the folder of a reproduction. Raises ValueError if it belongs to another."""
    path, mine = out / "reproduction.json", flatten(description)
    if path.exists():
        theirs = flatten(read_json(path))
        if other := difference({key: theirs.get(key) for key in mine}, mine):
            raise ValueError(f"{out} holds another reproduction: {other}; choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and holds no reproduction; choose another folder")
    write_json(path, description)


def check_trained(out: Path, plan: TrainingPlan, only: ReproductionStage | None) -> None:
    """Raise ValueError for one stage of models that are not all trained."""
    roles = [config.role for config in plan.configs]
    untrained = [role for role in roles if not RunFolder(out / role).is_finished()]
    if untrained and only:
        raise ValueError(
            f"`only={only}` needs trained models, and {' and '.join(untrained)} in {out} "
            f"{'is' if len(untrained) == 1 else 'are'} not: repeat the call without it first"
        )


def train_all(out: Path, plan: TrainingPlan, device: str) -> int | None:
    """Train what is not trained yet; the number of the signal that stopped it, if any."""
    for config in plan.configs:
        run = RunFolder(out / config.role)
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


def collect(
    plan: TrainingPlan | PretrainedPlan,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    samples: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The content of results.json beside the stages' numbers, without any path of this machine."""
    trained_on = len(train_set) if isinstance(plan, TrainingPlan) else None
    return {
        **({"card": card_numbers()} if plan.name == TITLE else {}),
        "dsmooth": __version__,
        "name": plan.name,
        "budget_minutes": plan.budget,
        "data": {
            "name": test_set.name,
            "embedded_subset": test_set.source.startswith("embedded"),
            "train_images": len(train_set),
            "test_images": len(test_set),
            "image_size": list(test_set.image_size),
            "image_channels": test_set.image_channels,
        },
        "machine": describe_machine(models.device),
        "runs": {
            role: describe_model(role, models, test_set, trained_on) for role in models.networks
        },
        "samples": {
            "seed": plan.seed,
            "count": {name: len(x) for name, x in samples.items()},
            "diverged": {name: int(is_diverged(x).sum()) for name, x in samples.items()},
        },
    }
