"""results.json of a reproduction: models, data, machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..config import Role
from ..data import ImageDataset
from ..distributed import rank_and_size
from ..files import read_json
from ..machine import cpu_name
from ..models import Models
from ..pictures import is_diverged
from ..pretrained import DEFAULT, TITLE, find
from ..runs import training_seconds
from ..train.log import loss_name
from .plan import PretrainedPlan, TrainingPlan


def collect(
    plan: TrainingPlan | PretrainedPlan,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    samples: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The content of results.json beside the stages' numbers, without any path of this machine."""
    trained_on = len(train_set) if isinstance(plan, TrainingPlan) else None
    card = {"card": card_numbers()} if plan.name == TITLE else {}
    return {
        **card,
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


def describe_model(
    role: Role, models: Models, test_set: ImageDataset, trained_on: int | None = None
) -> dict[str, Any]:
    """A model's settings and size; its training, if the folder of a finished run is there.

    trained_on: images of the training set, where that is known.
    """
    network, smoothing = models.networks[role], models.pair.smoothing
    parameters = sum(p.numel() for p in network.parameters())
    if role not in models.settings:
        model = asdict(network.config)
        settings = {"model": model, "smoothing": smoothing.kind, "scale": smoothing.scale}
        return {"settings": settings, "parameters": parameters}
    run, config = models.runs[role], models.settings[role]
    settings = asdict(config)
    settings.pop("data_dir")
    description = {"settings": settings, "parameters": parameters}
    if not run.is_finished():
        return description
    entries = run.history()
    scores = [e["bits_per_dim"] for e in entries if e["event"] == "evaluation"]
    description |= {
        "images": config.images,
        "training_seconds": training_seconds(entries),
        "loss": loss_name(config),
        "notes": [e["text"] for e in entries if e["event"] == "note"],
        "held_out_bits_per_dim": scores[-1],
        "held_out_images": min(config.evaluation_images, len(test_set)),
    }
    if trained_on:
        description["passes_over_training_set"] = round((config.images or 0) / trained_on, 2)
    return description


def card_numbers() -> dict[str, Any]:
    """Numbers of the packaged models' card, which were measured with the whole of MNIST."""
    card = read_json(find(DEFAULT) / "card.json")
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
