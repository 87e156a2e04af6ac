"""Facts that results.json and the card state: models, machine, the packaged models' numbers."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from ..config import Role
from ..data import ImageDataset
from ..distributed import rank_and_size
from ..files import read_json
from ..machine import cpu_name
from ..models import Models
from ..pretrained import DEFAULT, find
from ..runs import training_seconds
from ..training.log import loss_name
from ..training.step import kernel_rate


def describe_model(
    role: Role, models: Models, test_set: ImageDataset, trained_on: int | None = None
) -> dict[str, Any]:
    """A model's settings and size; its training on so many images, if its run is finished."""
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
