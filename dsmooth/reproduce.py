"""`dsmooth reproduce`: train, draw, score and report, in one folder that remembers what is done."""

from __future__ import annotations

import fcntl
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .checkpoint import read_json, write_json
from .config import Role, TrainConfig, flatten
from .data import ImageDataset
from .evaluate.figures import is_diverged
from .evaluate.report import advice, bound_sentence, write_report
from .evaluate.stages import Models, draw_all, load_models, score_all
from .parallel import Run, train_side_by_side
from .presets import preset
from .runlog import read_log, read_run_config, write_run_config
from .train import catch_signals, load_data, loss_name

# The baseline's part of the training time. The pair is what the reproduction is about.
PLAIN_SHARE = 0.2
# The least training between two scores on held-out images.
EVALUATION_MINUTES = 0.4
SCORED_IMAGES = 1000


@dataclass(frozen=True)
class Plan:
    """What a reproduction trains.

    groups: the runs of a group train side by side; the groups follow one another. Among the runs
    are one noisy model and its denoiser; a plain one may be there.
    name: where the settings come from, for the report. budget: minutes of training in all, or
    None if the configs say how many images.
    """

    name: str
    groups: tuple[tuple[TrainConfig, ...], ...]
    budget: float | None = None

    @property
    def configs(self) -> dict[Role, TrainConfig]:
        """The settings by role."""
        return {config.role: config for group in self.groups for config in group}

    def description(self) -> dict[str, Any]:
        """All that decides the results, as JSON."""
        roles = {role: asdict(config) for role, config in self.configs.items()}
        return {"name": self.name, "budget": self.budget, "runs": roles}


def plan_from_preset(
    name: str, *, budget: float, data_dir: str | None = None, download: bool = False, seed: int = 0
) -> Plan:
    """The pair side by side, then the plain baseline, in `budget` minutes together.

    Raises ValueError for an unknown preset or a budget that is not positive.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"budget must be a positive number of minutes, got {budget}")

    def config(role: Role, share: float) -> TrainConfig:
        settings, minutes = preset(name, role), share * budget
        return replace(
            settings,
            images=None,
            budget=minutes,
            data_dir=data_dir,
            download=download,
            seed=seed,
            # A short run must not spend its time on being scored.
            evaluations=max(1, min(settings.evaluations, int(minutes / EVALUATION_MINUTES))),
        )

    pair = (config("noisy", 1 - PLAIN_SHARE), config("denoiser", 1 - PLAIN_SHARE))
    return Plan(name, (pair, (config("plain", PLAIN_SHARE),)), budget)


def reproduce(out: Path, plan: Plan, *, count: int = 64, scored_images: int = SCORED_IMAGES) -> int:
    """Carry out `plan` in the folder `out`, without repeating what an earlier call did there.

    Writes a run folder for each model, samples/ with a .npz array and a .png grid of `count`
    images for each method, results.json and report.html; the first `scored_images` held-out
    images are scored.
    Returns the exit status: 0, or 128 + the signal's number if it was stopped; the same call then
    goes on. Raises ValueError for a folder that holds something else and whatever data, settings
    and runs raise.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    train_set, test_set = load_data(next(iter(plan.configs.values())))
    claim_folder(out, plan)
    seed = plan.configs["noisy"].seed
    with lock_folder(out) as lock:
        interrupted = train_all(out, plan, test_set, lock)
        if interrupted:
            print(f"stopped and saved in {out}; repeat the same command to go on")
            return 128 + interrupted
        try:
            models = load_models(out)
            samples = draw_all(out / "samples", models, test_set, count, seed)
            bits = score_all(out / "bits_per_dim.json", models, test_set, scored_images)
        except KeyboardInterrupt:
            print(f"\nstopped; what is done is in {out}; repeat the same command to go on")
            return 130

        results = collect(out, plan, models, train_set, test_set, samples, bits)
        write_json(out / "results.json", results)
        histories = {str(role): history(out / role) for role in plan.configs}
        write_report(out / "report.html", results, histories, samples)
    summarise(out, results)
    return 0


def claim_folder(out: Path, plan: Plan) -> None:
    """Make `out` the folder of `plan`. Raises ValueError if it is that of something else."""
    path = out / "reproduction.json"
    mine = flatten(plan.description())
    if path.exists():
        theirs = flatten(read_json(path))
        different = [key for key in [*mine, *theirs] if mine.get(key) != theirs.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"{out} holds another reproduction: its {key} is {theirs.get(key)}, not "
                f"{mine.get(key)}; choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and holds no reproduction; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, plan.description())


@contextmanager
def lock_folder(out: Path) -> Iterator[int]:
    """Keep other calls out of `out`; yields the descriptor that holds the lock.

    Training runs inherit it, so that those that outlive a killed call still keep others out.
    Raises ValueError if the folder is taken.
    """
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another dsmooth reproduce, or a training run that it started, is at work in "
                f"{out}; wait for it, or choose another --out"
            ) from None
        yield file.fileno()


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` came to its end."""
    if not (folder / "log.jsonl").exists() or not (folder / "model.safetensors").exists():
        return False
    entries = read_log(folder)
    return bool(entries) and entries[-1]["event"] == "end"


def train_all(out: Path, plan: Plan, test_set: ImageDataset, lock: int) -> int | None:
    """Train what is not trained yet. Returns the number of the signal that stopped it, if any."""
    cores = torch.get_num_threads()
    with catch_signals() as stop:
        for group in plan.groups:
            left = [config for config in group if not is_finished(out / config.role)]
            for config in group:
                if config not in left:
                    print(f"{config.role}: trained already")
            if not left:
                continue
            runs = [prepare_run(out / config.role, config, test_set) for config in left]
            threads = max(1, cores // len(group))
            names = " and ".join(config.role for config in left)
            if any((run.folder / "checkpoint.safetensors").exists() for run in runs):
                what = f"going on with {names}"
            elif left[0].budget:
                what = f"training {names} for {left[0].budget:.3g} minutes"
            else:
                what = f"training {names}"
            each = " each" if len(left) > 1 else ""
            print(f"{what}, {threads} CPU thread{'s' if threads > 1 else ''}{each}", flush=True)
            interrupted = train_side_by_side(runs, threads, stop, [lock])
            if interrupted:
                return interrupted
    return None


def prepare_run(folder: Path, config: TrainConfig, test_set: ImageDataset) -> Run:
    """The run of `config` in `folder`, ready to start or to go on."""
    folder.mkdir(exist_ok=True)
    settings = folder / "settings.json"
    if not (folder / "checkpoint.safetensors").exists():
        if not (folder / "config.json").exists() and not settings.exists():
            write_run_config(folder, config, test_set.image_size)
        if (folder / "config.json").exists():
            # Just written, or left by a run that was killed before its first checkpoint: that one
            # begins again with the number of images that was measured then.
            os.replace(folder / "config.json", settings)
    return Run(config.role, folder, settings)


def history(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what a later start took back (steps after the last checkpoint)."""
    kept: list[dict[str, Any]] = []
    for entry in read_log(folder):
        if entry["event"] == "start":
            kept = [e for e in kept if e["images"] <= entry["images"]]
        kept.append(entry)
    return kept


def training_seconds(entries: Sequence[dict[str, Any]]) -> float:
    """Time in the training loop: each start counts its seconds from 0."""
    total = last = 0.0
    for entry in entries:
        if entry["event"] == "start":
            total, last = total + last, 0.0
        last = max(last, entry["seconds"])
    return round(total + last, 1)


def collect(
    out: Path,
    plan: Plan,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    samples: dict[str, Tensor],
    bits: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Everything that results.json says; no path of this machine is in it."""
    networks = {"noisy": models.pair.noisy, "denoiser": models.pair.denoiser, "plain": models.plain}
    runs = {}
    for role in plan.configs:
        config, _ = read_run_config(out / role / "config.json")
        entries = history(out / role)
        settings = asdict(config)
        settings.pop("data_dir")
        evaluations = [e for e in entries if e["event"] == "evaluation"]
        network = networks[role]
        assert network is not None  # every role of the plan was loaded
        runs[role] = {
            "settings": settings,
            "parameters": sum(p.numel() for p in network.parameters()),
            "images": config.images,
            "passes_over_training_set": round((config.images or 0) / len(train_set), 2),
            "training_seconds": training_seconds(entries),
            "loss": loss_name(config),
            "held_out_bits_per_dim": evaluations[-1]["bits_per_dim"],
            "held_out_images": min(config.evaluation_images, len(test_set)),
        }
    return {
        "dsmooth": __version__,
        "name": plan.name,
        "budget_minutes": plan.budget,
        "data": {
            "name": test_set.name,
            "embedded_subset": test_set.name == "mnist" and plan.configs["noisy"].data_dir is None,
            "train_images": len(train_set),
            "test_images": len(test_set),
            "image_size": list(test_set.image_size),
            "image_channels": test_set.image_channels,
        },
        "machine": describe_machine(),
        "runs": runs,
        "samples": {
            "seed": plan.configs["noisy"].seed,
            "count": len(samples["noisy"]),
            "diverged": {name: int(is_diverged(x).sum()) for name, x in samples.items()},
        },
        "bits_per_dim": bits,
    }


def describe_machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor_name(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def summarise(out: Path, results: dict[str, Any]) -> None:
    """Say on screen what came out, where it is, and how to go further."""
    print(f"\n{bound_sentence(results)}")
    print(f"Pictures: {out / 'samples'}/*.png")
    print(f"Report:   {out / 'report.html'} (open it in a browser; it needs no network)")
    for sentence in advice(results):
        print(sentence)
