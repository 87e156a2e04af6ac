"""What a reproduction and a card of packaged models hold: their measures, models and machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import Setting
from ..results import BitsResult, FrechetResult, ProbeResult, ReceptiveFields
from ..tables import Table


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

    loss: what these bits/dim are. training_images: size of the training set, None if unknown.
    """

    images: int
    seconds: float
    loss: str
    held_out_bits: float | None
    held_out_images: int
    training_images: int | None = None

    @property
    def passes(self) -> float | None:
        """Passes over the training set."""
        return self.images / self.training_images if self.training_images else None


@dataclass(frozen=True)
class ModelSummary:
    """A model: its settings by dotted names (model.n_filters), and its training if recorded."""

    parameters: int
    settings: dict[str, Setting]
    training: TrainingSummary | None = None


@dataclass(frozen=True)
class ReportData:
    """The images of a reproduction. embedded: the MNIST subset inside the package."""

    name: str
    embedded: bool
    train_images: int
    test_images: int
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """All numbers of a reproduction.

    name: of the settings or models. diverged: number of images with infinite values, by kind of
    picture. frechet: None without an extractor for these images. probes: None for images without
    labels.
    """

    name: str
    data: ReportData
    machine: Machine
    models: dict[str, ModelSummary]
    seed: int
    diverged: dict[str, int]
    bits: BitsResult
    frechet: FrechetResult | None
    probes: ProbeResult | None
    receptive_fields: ReceptiveFields


@dataclass(frozen=True)
class SampleQuality:
    """Samples of a card: Fréchet distances of the first N samples with their errors, by N; the
    share of black pixels; and the share of images that a classifier assigns at least a
    probability, by that probability."""

    distance: dict[str, float]
    error: dict[str, float]
    black: float
    confident: dict[str, float]


@dataclass(frozen=True)
class ClassNumbers:
    """Test images classified by Bayes' rule, and bits/dim given their class and without it."""

    n_images: int
    accuracy: float
    error: float | None
    bits_given_class: float
    bits_without: float


@dataclass(frozen=True)
class ClusterNumbers:
    """Bits/dim of test images by the sum over all clusters, and by a label of zeros."""

    n_images: int
    bits_summed: float
    bits_hidden: float


@dataclass(frozen=True)
class Card:
    """The numbers of packaged models (card.json). guidance: of the samples "guided".

    classes: of models of labelled classes; clusters: of models of their own clusters. judges: the
    tables of `python -m tools.judge`.
    """

    machine: Machine
    weights_sha256: dict[str, str]
    train_images: int
    test_images: int
    models: dict[str, ModelSummary]
    bits: BitsResult
    distance_name: str
    guidance: float
    samples: dict[str, SampleQuality]
    probes: dict[str, ProbeResult]
    classes: ClassNumbers | None = None
    clusters: ClusterNumbers | None = None
    judges: tuple[Table, ...] = ()
