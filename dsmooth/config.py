"""The settings of models, training runs and probes: frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from typing import (
    Annotated,
    Any,
    Literal,
    SupportsIndex,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import tyro

from .tables import shown

T = TypeVar("T")

Conditioning = Literal["none", "stack", "concat"]
Likelihood = Literal["continuous", "discretized", "gaussian"]

Count = int | Literal["auto"]
# Bytes with a probability of their own.
Atoms = tuple[int, ...] | Literal["all"]

# Name of a data set that was given in Python, in the settings of a run.
OWN = "own"
# Octave k of a pixel's Fourier features has 2^k periods over the 256 bytes; the last is the parity.
OCTAVES = 8
# No network needs more of anything; a damaged file must not make one that does.
LARGEST = 4096


def _default_hint(default: str) -> str:
    """The help's hint on a default that may be empty."""
    return f"(default: {default or 'none'})"


def bytes_of(atoms: Sequence[int] | Literal["all"], image_channels: int = 1) -> tuple[int, ...]:
    """The bytes of atoms. Raises ValueError for "all" of images that are not grey."""
    if isinstance(atoms, str):
        check_one_of("atoms", atoms, ("all",))
        if image_channels != 1:
            raise ValueError(
                'atoms="all" is for grey images: an atom is one level in all colours, so list the '
                f"levels; got {image_channels} image channels"
            )
        return tuple(range(256))
    return tuple(atoms)


def check_likelihood(
    likelihood: str,
    atoms: Sequence[int] = (),
    smoothing_scale: float = 0.0,
    allowed: Sequence[str] = get_args(Likelihood),
) -> None:
    """Raise ValueError for an unknown likelihood, or atoms or a scale that do not go with it."""
    check_one_of("likelihood", likelihood, allowed)
    if likelihood == "gaussian" and not 0 < smoothing_scale < math.inf:
        raise ValueError(
            f'smoothing_scale must be positive for likelihood "gaussian", got {smoothing_scale}'
        )
    if not atoms:
        return
    if likelihood != "discretized":
        raise ValueError(f'atoms need likelihood "discretized", got {likelihood!r}')
    whole = all(isinstance(level, int) and 0 <= level <= 255 for level in atoms)
    if not whole or len(set(atoms)) != len(atoms):
        raise ValueError(f"atoms must be distinct byte levels 0 .. 255, got {tuple(atoms)}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a PixelCNN++ (docs/math.md, section 1).

    The defaults are the paper's MNIST model. Raises ValueError for a field out of range.
    """

    image_channels: int = 1
    """C: 1 (grey) or 3 (RGB)."""
    n_filters: int = 40
    """F: channels of each stream."""
    n_resnet: int = 5
    """R: gated resnets per block."""
    n_mix: int = 10
    """K: logistic components per pixel."""
    dropout: float = 0.5
    """Probability that an element inside a gated resnet is zeroed while training."""
    conditioning: Conditioning = "none"
    """How a context image enters: not at all, stacked on top, or through an encoder."""
    likelihood: Likelihood = "continuous"
    """continuous: density of real-valued pixels under logistics; discretized: probability of the
    256 levels; gaussian: density under Gaussians that contain the smoothing's noise."""
    atoms: Annotated[Atoms, tyro.conf.arg(help_behavior_hint=_default_hint)] = ()
    """Bytes with a probability of their own, for likelihood=discretized; all: each of the 256, for
    grey images."""
    fourier_features: int = 0
    """Octaves of Fourier features by which the network sees exactly which byte a pixel is, 0 to 8;
    for likelihood=discretized."""
    head_filters: int = 0
    """M: channels of a hidden layer of the head that sees the four pixels around as they are; 0 for
    none."""
    smoothing_scale: float = 0.5
    """Standard deviation of the noise that likelihood=gaussian contains; training sets it to its
    own scale."""
    context_layers: int = 4
    """Gated resnets in the encoder of conditioning="concat"."""
    context_filters: int | None = None
    """Channels of that encoder; None for n_filters."""
    n_classes: Count = 0
    """Classes of images that the model is conditioned on, 0 for none; auto: as many as the labels
    of the training data."""
    noise_levels: Annotated[tuple[float, ...], tyro.conf.arg(help_behavior_hint=_default_hint)] = ()
    """Scales of gaussian noise that the model is conditioned on, rising, instead of one."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, ["image_channels"])
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 or 3, got {self.image_channels}")
        check_whole(self, ["n_filters", "n_resnet", "n_mix", "context_filters"], 1, LARGEST)
        check_whole(self, ["context_layers"], 0, LARGEST)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not math.isfinite(self.smoothing_scale):
            raise ValueError(f"smoothing_scale must be finite, got {self.smoothing_scale}")
        check_likelihood(self.likelihood, self.atom_bytes, self.smoothing_scale)
        check_whole(self, ["fourier_features"], 0, OCTAVES)
        check_whole(self, ["head_filters"], 0, LARGEST)
        if self.fourier_features and self.likelihood != "discretized":
            raise ValueError(
                'fourier_features need likelihood "discretized", whose pixels are bytes, got '
                f'"{self.likelihood}"'
            )
        if self.n_classes != "auto":
            check_whole(self, ["n_classes"], 0, LARGEST)
        levels = self.noise_levels
        rising = all(low < high for low, high in pairwise(levels))
        if len(levels) > LARGEST or not rising or not all(0 < s < math.inf for s in levels):
            raise ValueError(f"noise_levels must be positive and rise, got {levels}")

    @property
    def condition_size(self) -> int:
        """The number of classes that each image is conditioned on, 0 for none.

        Raises ValueError while n_classes is "auto".
        """
        if self.n_classes == "auto":
            raise ValueError(
                'n_classes="auto" is for training, which counts the labels of its data'
            )
        return self.n_classes

    @property
    def vector_size(self) -> int:
        """D: length of the vector of an image, which has its class and its noise level."""
        return self.condition_size + len(self.noise_levels)

    @property
    def atom_bytes(self) -> tuple[int, ...]:
        """The bytes that have an atom, all 256 for "all"."""
        return bytes_of(self.atoms, self.image_channels)

    @property
    def input_channels(self) -> int:
        """Channels that the network sees of a pixel: its colours, a one and their features."""
        return self.image_channels * (1 + 2 * self.fourier_features) + 1

    @property
    def n_params(self) -> int:
        """P: mixture parameters per pixel, 3K for grey images and 10K for RGB, and one per atom."""
        return (3 if self.image_channels == 1 else 10) * self.n_mix + len(self.atom_bytes)

    @property
    def mixture(self) -> dict[str, Any]:
        """The kind of a pixel's distribution, as the functional ops take it."""
        return {
            "likelihood": self.likelihood,
            "atoms": self.atom_bytes,
            "smoothing_scale": self.smoothing_scale,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a config from `dataclasses.asdict` or JSON. Raises ValueError for other keys."""
        return structure(values, cls)


Role = Literal["noisy", "denoiser", "plain"]
Split = Literal["train", "test"]
Method = Literal["two-step", "single-step", "noisy"]
Score = Literal["full", "conditional"]
ReproductionStage = Literal["samples", "bits-per-dim", "frechet", "probes", "receptive-field"]
SmoothingKind = Literal["gaussian", "laplace", "uniform"]
Precision = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adam", "muon"]
LearningRateSchedule = Literal["cosine", "cooldown", "exponential"]
Graph = Literal["auto", "on", "off"]
KeepGates = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights of a training run.

    Raises ValueError for a field out of range or fields that contradict each other.
    """

    role: Annotated[Role, tyro.conf.Suppress] = "noisy"
    """noisy: p(x~); denoiser: p(x | x~); plain: p(x), the baseline without smoothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: str = "mnist"
    """Data set: mnist, fashion-mnist, cifar10, celeba, folder."""
    data_dir: str | None = None
    """Folder of its files; without one, mnist is the embedded subset of 6,000 images."""
    download: bool = False
    """Whether to download the files into data_dir if they are not there."""
    image_size: int | None = None
    """Pixels a side for celeba and folder; None for the data set's own."""
    flip: bool = False
    """Mirror half of the training images left to right, drawn anew at each visit."""
    smoothing: SmoothingKind = "gaussian"
    """The distribution of x~ given x."""
    scale: float = 0.5
    """Its scale (for gaussian the standard deviation), in units of [-1, 1] pixels; the highest of
    noise_levels where the model has some."""
    clean_noise: float = 0.0
    """Standard deviation of noise added to the denoiser's target (the paper uses 0.01)."""
    images: int | None = None
    """Training images to visit, repeats counted. One of images and budget must be given."""
    budget: float | None = None
    """Minutes; the first seconds measure the rate, which fixes images."""
    batch_size: int = 32
    """Images per step."""
    accumulate: int = 1
    """Parts that a batch is computed in, to save memory; batch_size must be a multiple."""
    optimizer: OptimizerName = "adam"
    """adam: for all parameters; muon: for the kernels, and Adam for gains and biases."""
    learning_rate: float = 2e-3
    """Adam's peak learning rate."""
    kernel_rate: float | None = None
    """Muon's peak step: the angle in radians by which a step turns kernels. None for one that falls
    with the square root of the number of steps."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates."""
    schedule: LearningRateSchedule = "cosine"
    """cosine: falls to 0 at the end; cooldown: constant, then falls in a line to 0 over the last
    part of the images; exponential: each step times learning_rate_decay."""
    cooldown: float = 0.2
    """The part of the images over which schedule=cooldown falls."""
    learning_rate_decay: float = 1.0
    """Factor per step, for schedule=exponential (the paper uses 0.999995)."""
    warmup_images: int = 1000
    """Images over which the learning rate rises from 0."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None for no clipping."""
    ema: float = 0.9995
    """Largest decay of the moving average of weights; 0 for no average. The average reaches back
    1 / (1 - ema) steps, which should be few beside those in which the rate falls."""
    schedule_from: Annotated[int, tyro.conf.Suppress] = 0
    """Images after which the schedule began again: where a finished run was prolonged."""
    init: str | None = None
    """Begin with the weights of this run or pair, whose network, smoothing and scale are the
    defaults then, and with a new optimiser."""
    data_init: bool = True
    """Whether to set scales and biases from the first batch (data-dependent init)."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the machine is fast at it, else float32."""
    compile: bool = False
    """Whether to compile the gated resnets with torch.compile."""
    graph: Graph = "auto"
    """Replay a step as one CUDA graph: auto where that is possible; on, or an error that says why
    not; off."""
    keep_gates: KeepGates = "auto"
    """On a GPU, keep what the gates of gated resnets were made of for the backward, rather than
    compute it again: auto where a quarter of the free memory holds it."""
    seed: int = 0
    """Decides weights, order, noise and dropout."""
    evaluations: int = 8
    """How often the held-out images are scored, the end included."""
    evaluation_images: int = 500
    """Held-out images that are scored each time, always the same with the same noise."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints."""

    def __post_init__(self) -> None:
        check_choices(self)
        counts = ("batch_size", "accumulate", "evaluations", "evaluation_images", "images")
        check_whole(self, counts, 1)
        check_whole(self, ["image_size"])
        check_whole(self, ["warmup_images"], 0)
        check_whole(self, ["seed"], 0, 2**64 - 1)
        for name in ("scale", "learning_rate", "budget", "checkpoint_minutes", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.kernel_rate is not None:
            if self.optimizer != "muon":
                raise ValueError(f'kernel_rate needs optimizer "muon", got "{self.optimizer}"')
            if not 0 < self.kernel_rate < 1:
                raise ValueError(f"kernel_rate must lie in (0, 1), got {self.kernel_rate}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        for name in ("cooldown", "learning_rate_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.schedule_from < 0 or self.schedule_from >= (self.images or math.inf):
            raise ValueError(
                f"schedule_from must lie in 0 .. images, got {self.schedule_from} of {self.images}"
            )
        if not 0 <= self.clean_noise < math.inf:
            raise ValueError(f"clean_noise must not be negative, got {self.clean_noise}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} "
                f"and {self.accumulate}"
            )
        if self.model.noise_levels:
            if self.role == "plain" or self.smoothing != "gaussian" or self.clean_noise:
                raise ValueError(
                    "noise_levels are for a noisy model or a denoiser, with gaussian smoothing and "
                    "without clean_noise"
                )
            object.__setattr__(self, "scale", self.model.noise_levels[-1])
        conditioned = self.model.conditioning != "none"
        if conditioned != (self.role == "denoiser"):
            raise ValueError(
                f'role "{self.role}" does not go with conditioning "{self.model.conditioning}"'
            )
        if self.role == "noisy" and self.model.likelihood == "discretized":
            raise ValueError(
                'role "noisy" needs likelihood "continuous" or "gaussian": noisy pixels are not '
                'bytes, got "discretized"'
            )
        if self.model.likelihood == "gaussian":
            if (self.role, self.smoothing) != ("noisy", "gaussian"):
                raise ValueError(
                    'likelihood "gaussian" is for role "noisy" with gaussian smoothing, got role '
                    f'"{self.role}" with {self.smoothing} smoothing; take "continuous"'
                )
            lowest = self.model.noise_levels[0] if self.model.noise_levels else self.scale
            model = replace(self.model, smoothing_scale=lowest)
            object.__setattr__(self, "model", model)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Rebuild a config from `dataclasses.asdict` or JSON. Raises ValueError for other keys."""
        return structure(values, cls)


Block = Literal["up0", "up1", "up2", "down0", "down1", "down2"]
BLOCKS: tuple[Block, ...] = get_args(Block)
ProbeStream = Literal["ul", "u", "both"]
Pooling = Literal["flat", "mean"]
ProbeInput = Literal["noisy", "clean"]


@dataclass(frozen=True)
class ProbeSettings:
    """The input of linear probes and the length of their training.

    Raises ValueError for a field out of range.
    """

    blocks: tuple[Block, ...] = BLOCKS
    """Blocks that are probed."""
    stream: ProbeStream = "ul"
    """Which stream of a block: ul, u, or both."""
    pooling: Pooling | int = "flat"
    """flat: every value of the map is a feature, as in the paper; mean: each filter's average; a
    number n: averages over n x n parts of the map."""
    together: int = 4
    """One more probe sees both streams of all the blocks, averaged over n x n parts; 0 for none."""
    input: ProbeInput = "noisy"
    """noisy: the networks see x~ alone, as in the paper; clean: x (the denoiser x given x~)."""
    train_images: int | None = None
    """Training images, the first ones; by default all."""
    test_images: int | None = None
    """Test images, the first ones; by default all."""
    epochs: int = 20
    """Passes of a probe over the training images."""
    seed: int = 0
    """Decides the noise, the order of images and the untrained networks."""

    def __post_init__(self) -> None:
        check_choices(self)
        if isinstance(self.pooling, str):
            check_one_of("pooling", self.pooling, get_args(Pooling))
        else:
            check_whole(self, ["pooling"], 1)
        for block in self.blocks:
            check_one_of("blocks", block, BLOCKS)
        if not self.blocks:
            raise ValueError("blocks must name a block at least")
        check_whole(self, ["together"], 0)
        check_whole(self, ["train_images", "test_images", "epochs"], 1)
        check_whole(self, ["seed"], 0, 2**64 - 1)


def structure(values: Any, kind: type[T]) -> T:
    """The dataclass from what `asdict` or JSON gave, strictly; ValueError names the field."""
    try:
        made = msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        raise ValueError(shown(f"{field}: {reason}" if field else reason)) from None
    known = flatten(asdict(made))  # type: ignore[call-overload]  # typing has no bound "a dataclass"
    unknown = [name for name in flatten(values) if name not in known]
    if unknown:
        raise ValueError(shown(f"{kind.__name__} has no field {', '.join(sorted(unknown))}"))
    return made


@cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The values that each field of a dataclass may have, where its type lists them."""
    hints = get_type_hints(kind).items()
    return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}


def check_choices(config: Any) -> None:
    """Raise ValueError for a field that has none of the values that its type lists."""
    for name, allowed in _choices(config.__class__).items():
        check_one_of(name, getattr(config, name), allowed)


def check_one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_whole(
    config: Any, names: Iterable[str], least: int | None = None, most: int | None = None
) -> None:
    """Raise ValueError for a field that is no whole number within bounds, nor None if it may be."""
    optional = {each.name for each in fields(config) if "None" in str(each.type)}
    for name in names:
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        number = value.__index__()
        if (least is not None and number < least) or (most is not None and number > most):
            allowed = f"be at least {least}" if most is None else f"lie in {least} .. {most}"
            raise ValueError(f"{name} must {allowed}, got {value}")


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; tuples as lists, as JSON has them."""
    if not isinstance(value, dict):
        return {name: list(value) if isinstance(value, tuple) else value}
    parts = [flatten(v, f"{name}.{k}" if name else k) for k, v in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
