"""results.json and report.html from the files of the stages, and the facts that they state."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jinja2 import UndefinedError

from .._version import __version__
from ..config import Role
from ..data import ImageDataset
from ..distributed import rank_and_size
from ..files import read_json, write_json
from ..machine import cpu_name
from ..models import Models
from ..pictures import is_diverged
from ..pretrained import DEFAULT, TITLE, packaged
from ..report.page import write_report
from ..runs import training_seconds
from ..training.log import loss_name
from ..training.step import kernel_rate
from .stages import Stages


def report(
    stages: Stages,
    title: str,
    budget: float | None = None,
    commands: Sequence[str] = (),
    *,
    trained_here: bool = False,
) -> list[str]:
    """Write results.json and report.html from the files of the stages and the logs of the runs.

    title: of the models or of their settings. budget: minutes of their training in all, commands:
    for longer training. Returns the sentences of `write_report`. Raises ValueError for a result
    that cannot be reported.
    """
    models, train_set, test_set = stages.models, stages.train_set, stages.test_set
    pictures = stages.pictures()
    trained_on = len(train_set) if trained_here else None
    # Nothing in it names a path of this machine.
    results: dict[str, Any] = {
        **({"card": card_numbers()} if title == TITLE else {}),
        "dsmooth": __version__,
        "name": title,
        "budget_minutes": budget,
        "data": {
            "name": test_set.name,
            "embedded_subset": stages.embedded,
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
            "seed": stages.seed,
            "count": {name: len(x) for name, x in pictures.items()},
            "diverged": {name: int(is_diverged(x).sum()) for name, x in pictures.items()},
        },
        **stages.results("bits_per_dim", "frechet", "receptive_field", "probes"),
    }
    runs = {str(role): run for role, run in models.runs.items() if run.is_finished()}
    histories = {role: run.history() for role, run in runs.items()}
    path = stages.folder / "report.html"
    try:
        sentences = write_report(path, results, histories, pictures, commands)
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
        raise ValueError(
            f"{stages.folder} holds a result that cannot be reported ({error!r}): `only=STAGE` "
            "computes a stage again"
        ) from error
    write_json(stages.folder / "results.json", results)
    return sentences


def describe_model(
    role: Role, models: Models, test_set: ImageDataset, trained_on: int | None = None
) -> dict[str, Any]:
    """A model's settings and size, and its training if the run is finished.

    trained_on: size of its training set, where that is known.
    """
    network = models.networks[role]
    parameters = sum(p.numel() for p in network.parameters())
    if role not in models.settings:
        smoothing = models.pair.smoothing
        noise = {"smoothing": smoothing.kind, "scale": smoothing.scale}
        return {"settings": {"model": asdict(network.config), **noise}, "parameters": parameters}
    run, config = models.runs[role], models.settings[role]
    settings = {key: value for key, value in asdict(config).items() if key != "data_dir"}
    description: dict[str, Any] = {"settings": settings, "parameters": parameters}
    if not run.is_finished():
        return description
    entries = run.history()
    settings["kernel_rate"] = kernel_rate(config) if config.optimizer == "muon" else None
    evaluations = [e["bits_per_dim"] for e in entries if e["event"] == "evaluation"]
    description |= {
        "images": config.images,
        "training_seconds": training_seconds(entries),
        "loss": loss_name(config),
        "notes": [e["text"] for e in entries if e["event"] == "note"],
        "held_out_bits_per_dim": evaluations[-1] if evaluations else None,
        "held_out_images": min(config.evaluation_images, len(test_set)),
    }
    if trained_on:
        description["passes_over_training_set"] = round((config.images or 0) / trained_on, 2)
    return description


def card_numbers() -> dict[str, Any]:
    """Numbers of the packaged models' card, which were measured with the whole of MNIST."""
    card = read_json(packaged()[DEFAULT] / "card.json")
    probes = card["probes"]["noisy"]["accuracy"]["noisy"]
    return {
        "train_images": card["data"]["train_images"],
        "distances": card["samples"]["of"]["two-step"]["distance"],
        "probes": {name: probe["accuracy"] for name, probe in probes.items()},
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, processes, threads, GPUs in use, and versions."""
    size, gpu = rank_and_size()[1], None
    if device.type == "cuda":
        number = min(size, torch.cuda.device_count())
        gpu = f"{number} x " * (number > 1) + torch.cuda.get_device_name(device)
    return {
        "processor": cpu_name(),
        "processes": size,
        "cpu_threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
