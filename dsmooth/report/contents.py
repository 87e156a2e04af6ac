"""What a reproduction holds: its measures, models and machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import Setting
from ..results import BitsResult, FrechetResult, ProbeResult, ReceptiveFields


@dataclass(frozen=True)
class Machine:
    """Where and with which versions numbers were measured. gpu: None for the CPU."""

    processor: str
    processes: int
    cpu_threads: int
    gpu: str | None
    system: str
    python: str
    torch: str
    dsmooth: str


@dataclass(frozen=True)
class TrainingSummary:
    """A finished run: images seen, seconds of training, bits/dim of held-out images at the end.

    loss: what these bits/dim are.
    """

    images: int
    seconds: float
    loss: str
    held_out_bits: float | None
    held_out_images: int


@dataclass(frozen=True)
class ModelSummary:
    """A model: its settings by dotted names (model.n_filters), and its training if recorded."""

    parameters: int
    settings: dict[str, Setting]
    training: TrainingSummary | None = None


@dataclass(frozen=True)
class Report:
    """All numbers of a reproduction.

    name: of the settings or models. data, embedded: the data set, and whether it is the MNIST
    subset inside the package. diverged: number of images with infinite values, by kind of picture.
    frechet: None without an extractor for these images. probes: None for images without labels.
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
