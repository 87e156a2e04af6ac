"""Results of every measure, as frozen dataclasses that files hold as JSON (dsmooth/work.py).

An `error` is a standard error; it is None where a single image gives none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .config import ProbeSettings
from .pixels import PER_UNIT
from .text import Table, decimals

# A density in units of [-1, 1] becomes one per byte by adding this many bits/dim.
BYTE_BITS = math.log2(PER_UNIT)
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
class Number:
    """A number in bits/dim. error: over images. over_draws: the error over the draws of noise, None
    for fewer than ten."""

    value: float
    error: float | None
    over_draws: float | None


@dataclass(frozen=True)
class Numbers:
    """Bits/dim of a model in every convention: bounds for a pair, exact for a plain model.

    discrete: of bytes, comparable with the literature. density: in units of [-1, 1]. per_byte: the
    density per grey level. importance_weighted: of bytes, by the log of the mean weight, None for
    one draw of noise. mixture: of bytes, summed over the pair's classes, if computed.
    """

    discrete: Number
    density: Number
    per_byte: Number
    importance_weighted: Number | None = None
    mixture: Number | None = None


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

    likelihood: that the model was trained with. n_noise: draws of x~ per image. dimensions:
    sub-pixels of an image. clean_noise: standard deviation of the noise on the target of a density.
    classes: "given" for bits/dim given the class of each image, "hidden" where the model saw none,
    as no image has a label of its classes. weights_sha256: of the networks.
    """

    likelihood: Literal["discretized", "continuous"]
    numbers: Numbers
    terms: Terms
    n_images: int
    n_noise: int
    dimensions: int
    clean_noise: float
    classes: Literal["none", "given", "hidden"]
    weights_sha256: tuple[str, ...]

    @property
    def headline(self) -> Number:
        """The number in the likelihood that the model was trained with."""
        is_density = self.likelihood == "continuous"
        return self.numbers.density if is_density else self.numbers.discrete


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
    rows = [(f"{m}: {words}", x) for m, bits in result.models.items() for words, x in _rows(bits)]
    columns: dict[str, list[float | None]] = {
        "bits/dim": [x.value for _, x in rows],
        "± images": [x.error for _, x in rows],
        "± repeats": [x.over_draws for _, x in rows],
    }
    columns = {head: values for head, values in columns.items() if set(values) != {None}}
    numbers = zip(*([decimals(v) for v in values] for values in columns.values()), strict=True)
    cells = [[words, *row] for (words, _), row in zip(rows, numbers, strict=True)]
    return Table(["", *columns], cells, title)


def _rows(bits: Bits) -> Iterator[tuple[str, Number]]:
    """The numbers, each with its name and meaning: comparable ones first, which have a star."""
    numbers, given = bits.numbers, bits.classes == "given"
    name, relation = "discrete bound", "upper bound on"
    if bits.terms.noisy is None:
        name, relation = "discrete", "exactly"
    event = "bytes | class" if given else "bytes"
    yield f"{name} *\n{relation} -log2 P({event}) / d", numbers.discrete
    if numbers.importance_weighted is not None:
        words = "the same by the log of the mean weight, which is tighter"
        head = f"{name}, importance-weighted, n = {bits.n_noise} *"
        yield f"{head}\n{words}", numbers.importance_weighted
    if numbers.mixture is not None:
        words = "upper bound on -log2 P(bytes) / d of the mixture that the pair draws from"
        yield f"{name}, mixture of classes *\n{words}", numbers.mixture
    density_words = "the mass of each byte spread evenly over it, in units of [-1, 1]"
    byte_words = "the same per grey level, so the discrete number again"
    if bits.likelihood == "continuous":
        target = f"x + {bits.clean_noise:g} n" if bits.clean_noise else "x"
        density_words = f"density of {target}{' given the class' * given} in units of [-1, 1]"
        byte_words = "the same per grey level; not a probability of bytes"
    yield f"density\n{density_words}", numbers.density
    yield f"density + {BYTE_BITS:.3f}\n{byte_words}", numbers.per_byte


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
