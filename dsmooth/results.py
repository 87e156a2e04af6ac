"""Results of every measure, as frozen dataclasses that files hold as JSON (dsmooth/work.py).

An `error` is a standard error; it is None where a single image gives none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import ProbeSettings
from .text import Table, decimals

COMPARABLE = "* comparable with discrete bits/dim of the literature"
# SHA-256 of the file of the Inception weights of 2015.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class MeasuredImages:
    """The first `n_images` of a split of a data set."""

    name: str
    split: str
    n_images: int


@dataclass(frozen=True)
class Convention:
    """One number in bits/dim and its meaning.

    error: over images. repeat_error: over the draws of noise, None for fewer than ten.
    comparable: with discrete bits/dim of the literature.
    """

    name: str
    value: float
    error: float | None
    repeat_error: float | None
    comparable: bool
    meaning: str


@dataclass(frozen=True)
class Terms:
    """Terms of the bound in bits/dim, averaged over images and draws.

    noisy, smoothing: -log2 p(x~) / d and log2 q(x~ | x) / d of a pair. discretized, continuous: of
    the clean image, by either likelihood. None for what the model has not.
    """

    discretized: float
    continuous: float | None = None
    noisy: float | None = None
    smoothing: float | None = None


@dataclass(frozen=True)
class Bits:
    """Bits/dim of a model: a bound for a pair, exact for a plain model.

    value, error: in the likelihood that the model was trained with. n_noise: draws of x~ per image.
    dimensions: sub-pixels of an image. clean_noise: standard deviation of the noise on the target
    of a density. classes: "given" for bits/dim given the class of each image, "hidden" where the
    model saw none, as no image has a label of its classes. weights_sha256: of the networks.
    """

    likelihood: Literal["discretized", "continuous"]
    value: float
    error: float | None
    terms: Terms
    n_images: int
    n_noise: int
    dimensions: int
    clean_noise: float
    classes: Literal["none", "given", "hidden"]
    conventions: tuple[Convention, ...]
    weights_sha256: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Bits/dim that the pair needs more than the plain model for the bytes of the same images.

    error: of the difference, paired over images.
    """

    value: float
    error: float | None
    n_images: int


@dataclass(frozen=True)
class BitsResult:
    """Bits/dim of models, by "pair" and "plain". seed: of the noise.

    difference: of both; None for one of them, and if only one is given the classes.
    """

    data: MeasuredImages
    seed: int
    models: dict[str, Bits]
    difference: Difference | None = None

    @property
    def pair(self) -> Bits | None:
        """The pair, if it was measured."""
        return self.models.get("pair")

    @property
    def plain(self) -> Bits | None:
        """The plain model, if it was measured."""
        return self.models.get("plain")


def bits_table(result: BitsResult, title: str = "") -> Table:
    """Bits/dim of the models in every convention. A column without numbers is left out."""
    rows = [(name, row) for name, bits in result.models.items() for row in bits.conventions]
    columns: dict[str, list[float | None]] = {
        "bits/dim": [row.value for _, row in rows],
        "± images": [row.error for _, row in rows],
        "± repeats": [row.repeat_error for _, row in rows],
    }
    columns = {head: values for head, values in columns.items() if set(values) != {None}}
    words = [f"{name}: {row.name}{' *' * row.comparable}\n{row.meaning}" for name, row in rows]
    numbers = zip(*([decimals(v) for v in values] for values in columns.values()), strict=True)
    cells = [[word, *row] for word, row in zip(words, numbers, strict=True)]
    return Table(["", *columns], cells, title)


@dataclass(frozen=True)
class Extractor:
    """The network whose features are compared, and how it resizes images."""

    name: str
    sha256: str
    resize: str

    @property
    def is_inception(self) -> bool:
        """Whether these are the Inception weights of 2015, by which scores have their names."""
        return self.sha256 == INCEPTION_SHA256

    @property
    def distance_name(self) -> str:
        """FID for the Inception weights of 2015; else the Fréchet distance on this extractor."""
        return "FID" if self.is_inception else f"Fréchet distance on {self.name}"


@dataclass(frozen=True)
class FidelityScores:
    """Scores by torch-fidelity (`fidelity_scores`); None for those that cannot be computed.

    Deviations are over subsets and parts; precision and recall are fractions in 0 .. 1.
    """

    kernel_distance: float | None = None
    kernel_distance_deviation: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: float | None = None
    inception_score_deviation: float | None = None


@dataclass(frozen=True)
class Distance:
    """A set of images against the reference: squared Fréchet distance, and its error over images.

    black: share of pixels that are black in every colour. scores: None without torch-fidelity.
    """

    value: float
    error: float
    n_images: int
    black: float
    scores: FidelityScores | None = None


# The entry of real images that are not in the reference: what a perfect model would get.
FLOOR = "real"


@dataclass(frozen=True)
class FrechetResult:
    """Sets of images against one reference of real images.

    dimension: of the features. n_reference: images of the reference, None if unknown. distances: by
    the name of the set, with the floor under "real". warnings: sentences that belong to the
    numbers.
    """

    name: str
    extractor: Extractor
    dimension: int
    n_reference: int | None
    distances: dict[str, Distance]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProbeScore:
    """A linear probe: fractions of the test and training images that it classifies correctly.

    features: dimension of its input. held_out: accuracy on the last sixth of the training images,
    after training on the others.
    """

    accuracy: float
    error: float
    train_accuracy: float
    features: int
    held_out: float


# The probes of a network, by block.
BlockScores = dict[str, ProbeScore]


@dataclass(frozen=True)
class ProbeResult:
    """Probes of every network by its name, and their settings with the numbers of images."""

    accuracy: dict[str, BlockScores]
    settings: ProbeSettings


@dataclass(frozen=True)
class ReceptiveField:
    """How many pixels the middle pixel depends on: of the earlier ones `reached` and not
    (`blind_spot`), and of the later ones (`leaks`). influence: |d output / d pixel|, by row."""

    reached: int
    blind_spot: int
    leaks: int
    influence: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ReceptiveFields:
    """Receptive fields of networks on size x size images at `pixel` (row, column).

    causal: number of pixels before it in raster order.
    """

    size: int
    pixel: tuple[int, int]
    causal: int
    networks: dict[str, ReceptiveField]
