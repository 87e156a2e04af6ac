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
from ..machine import cpu_name
from ..models import Models
from ..pictures import is_diverged
from ..runs import training_seconds
from ..train.held_out import loss_name


def collect(
    name: str,
    budget: float | None,
    seed: int,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    samples: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The content of results.json beside the stages' numbers, without any path of this machine."""
    return {
        "dsmooth": __version__,
        "name": name,
        "budget_minutes": budget,
        "data": {
            "name": test_set.name,
            "embedded_subset": test_set.source.startswith("embedded"),
            "train_images": len(train_set),
            "test_images": len(test_set),
            "image_size": list(test_set.image_size),
            "image_channels": test_set.image_channels,
        },
        "machine": describe_machine(),
        "runs": {
            role: describe_model(role, models, train_set, test_set) for role in models.networks
        },
        "samples": {
            "seed": seed,
            "count": {name: len(x) for name, x in samples.items()},
            "diverged": {name: int(is_diverged(x).sum()) for name, x in samples.items()},
        },
    }


def describe_model(
    role: Role, models: Models, train_set: ImageDataset, test_set: ImageDataset
) -> dict[str, Any]:
    """A model's settings and size; its training, if the folder of a finished run is there."""
    network, smoothing = models.networks[role], models.pair.smoothing
    parameters = sum(p.numel() for p in network.parameters())
    run = models.runs.get(role)
    if run is None:
        settings = {
            "model": asdict(network.config),
            "smoothing": smoothing.kind,
            "scale": smoothing.scale,
        }
        return {"settings": settings, "parameters": parameters}
    config = models.settings[role]
    settings = asdict(config)
    settings.pop("data_dir")
    if not run.is_finished():
        return {"settings": settings, "parameters": parameters}
    entries = run.history()
    scores = [e["bits_per_dim"] for e in entries if e["event"] == "evaluation"]
    return {
        "settings": settings,
        "parameters": parameters,
        "images": config.images,
        "passes_over_training_set": round((config.images or 0) / len(train_set), 2),
        "training_seconds": training_seconds(entries),
        "loss": loss_name(config),
        "notes": [e["text"] for e in entries if e["event"] == "note"],
        "held_out_bits_per_dim": scores[-1],
        "held_out_images": min(config.evaluation_images, len(test_set)),
    }


def describe_machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
