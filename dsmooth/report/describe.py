"""Facts of a report: models, machine and training curves."""

from __future__ import annotations

import platform
from dataclasses import asdict

import torch

from .._version import __version__
from ..config import Role
from ..data import ImageDataset
from ..distributed import rank_and_size
from ..fields import flatten
from ..machine import cpu_name
from ..pretrained import Loaded
from ..runlog import HeldOut, Step
from ..runs import RunFolder
from ..training.step import kernel_rate
from .contents import Machine, ModelSummary, TrainingSummary
from .plots import Curve


def describe_model(role: Role, models: Loaded, test_set: ImageDataset) -> ModelSummary:
    """A model's settings and size, and its training if the run is finished."""
    network, run = models.networks[role], models.runs.get(role)
    parameters = sum(p.numel() for p in network.parameters())
    if run is None:
        smoothing = models.pair.smoothing
        noise = {"smoothing": smoothing.kind, "scale": smoothing.scale}
        return ModelSummary(parameters, flatten({"model": asdict(network.config), **noise}))
    config = run.read_config()[0]
    settings = {key: value for key, value in asdict(config).items() if key != "data_dir"}
    training = None
    if run.is_finished():
        settings["kernel_rate"] = kernel_rate(config) if config.optimizer == "muon" else None
        record = network.record
        training = record and TrainingSummary(
            images=record.images or 0,
            seconds=record.seconds or 0.0,
            loss=record.loss or "",
            held_out_bits=record.bits_per_dim,
            held_out_images=min(config.evaluation_images, len(test_set)),
        )
    return ModelSummary(parameters, flatten(settings), training)


def curve_of(run: RunFolder) -> Curve:
    """The curve of a run's log."""
    entries = run.history()
    steps = [(entry.images, entry.bits_per_dim) for entry in entries if isinstance(entry, Step)]
    scores = [(entry.images, entry.bits_per_dim) for entry in entries if isinstance(entry, HeldOut)]
    return Curve(steps, scores)


def describe_machine(device: torch.device) -> Machine:
    """Processor, processes, threads, GPUs in use, and versions."""
    size, gpu = rank_and_size()[1], None
    if device.type == "cuda":
        number = min(size, torch.cuda.device_count())
        gpu = f"{number} x " * (number > 1) + torch.cuda.get_device_name(device)
    return Machine(
        processor=cpu_name(),
        processes=size,
        cpu_threads=torch.get_num_threads(),
        gpu=gpu,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        dsmooth=__version__,
    )
