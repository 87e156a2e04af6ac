"""What a reproduction holds: its measures, models and machine."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import torch

from .._extension import __version__
from ..config import Role, TrainingRecord
from ..fields import Setting, flatten
from ..machine import cpu_name
from ..pretrained import Loaded
from ..results import BitsResult, FrechetResult, ProbeResult, ReceptiveFields
from ..training.step import kernel_rate


@dataclass(frozen=True)
class Machine:
    """Where and with which versions numbers were measured. gpu: None for the CPU."""

    processor: str
    cpu_threads: int
    gpu: str | None
    system: str
    python: str
    torch: str
    dsmooth: str


@dataclass(frozen=True)
class ModelSummary:
    """A model: its settings by dotted names (model.n_filters), and its training if finished."""

    parameters: int
    settings: dict[str, Setting]
    training: TrainingRecord | None = None


@dataclass(frozen=True)
class Report:
    """All numbers of a reproduction.

    name: of the settings or models. embedded: whether the data are the MNIST subset inside the
    package. diverged: images with infinite values, by kind of picture. frechet: None without an
    extractor for these images. probes: None for images without labels.
    """

    name: str
    data: str
    embedded: bool
    train_images: int
    test_images: int
    image_size: tuple[int, int]
    machine: Machine
    models: dict[str, ModelSummary]
    seed: int
    diverged: dict[str, int]
    bits: BitsResult
    frechet: FrechetResult | None
    probes: ProbeResult | None
    receptive_fields: ReceptiveFields


def describe_model(role: Role, models: Loaded) -> ModelSummary:
    """A model's settings and size, and its training if the run is finished."""
    network, run, noise = models.networks[role], models.runs.get(role), models.pair.smoothing
    parameters = sum(p.numel() for p in network.parameters())
    if run is None:
        known = {"model": asdict(network.config), "smoothing": noise.kind, "scale": noise.scale}
        return ModelSummary(parameters, flatten(known))
    config = run.read_config()[0]
    settings = {key: value for key, value in asdict(config).items() if key != "data_dir"}
    if not run.is_finished():
        return ModelSummary(parameters, flatten(settings))
    settings["kernel_rate"] = kernel_rate(config) if config.optimizer == "muon" else None
    return ModelSummary(parameters, flatten(settings), network.record)


def describe_machine(device: torch.device) -> Machine:
    """Processor, threads, GPU, and versions."""
    return Machine(
        processor=cpu_name(),
        cpu_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        dsmooth=__version__,
    )
