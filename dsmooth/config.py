"""The settings of models, training runs and probes: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from msgspec import Meta

from .fields import SettingError, check, check_one_of, plain_values
from .pixels import N_BYTES, Atoms, Likelihood, MixtureOptions, check_likelihood

# Name of a data set that was given in Python, in the settings of a run.
OWN = "own"
# Data sets that are read at an image size.
RESIZED = ("celeba", "folder")
# Labels of samplers that are not names of classes.
RESERVED = frozenset(("each", "own", "prior"))
# Octave k of a pixel's Fourier features has 2^k periods over the 256 bytes; the last is the parity.
OCTAVES = 8
# Upper bounds of every size, so that a damaged file cannot ask for terabytes, and of the number of
# layers in a row, each of which takes time.
LARGEST, DEEPEST = 4096, 256
# Fields of a network that follow from the noise and the data of its training.
DERIVED = ("smoothing_scale", "classes")

Conditioning = Literal["none", "stack", "concat"]
Size = Annotated[int, Meta(ge=1, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, extra={"<=": 2**64 - 1})]
PositiveFloat = Annotated[float, Meta(gt=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Share = Annotated[float, Meta(gt=0, le=1)]


@plain_values
@dataclass(frozen=True)
class Classes:
    """The classes of images that a model is conditioned on.

    Raises ValueError for a field out of range.
    """

    names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=LARGEST)]
    """Their names, in the order of their numbers 0, 1, .."""
    shares: tuple[float, ...] = ()
    """The share of each among the training images, which is its prior probability; none: equal."""
    dropout: Probability = 0.0
    """The fraction of the training images that were seen without their class. Unless it is 0, the
    model has learned images of no class, -1, which guidance needs."""

    def __post_init__(self) -> None:
        check(self)
        if len({*self.names}) < len(self.names) or not RESERVED.isdisjoint(self.names):
            words = f"must be different, and not {' or '.join(sorted(RESERVED))}"
            raise SettingError("names", f"{words}, got {', '.join(self.names)}")
        if self.shares and not (
            len(self.shares) == len(self.names)
            and min(self.shares) >= 0
            and 0.999 < sum(self.shares) < 1.001
        ):
            raise SettingError(
                "shares", f"must be {len(self.names)} numbers with the sum 1, got {self.shares}"
            )


@plain_values
@dataclass(frozen=True)
class ModelConfig:
    """The shape of a PixelCNN++ (docs/math.md, section 1).

    The defaults are the paper's MNIST model. Raises ValueError for a field out of range.
    """

    image_channels: int = 1
    """C: 1 (grey) or 3 (RGB)."""
    n_filters: Size = 40
    """F: channels of each stream."""
    n_resnet: Annotated[int, Meta(ge=1, le=DEEPEST)] = 5
    """R: gated resnets per block."""
    n_mix: Size = 10
    """K: logistic components per pixel."""
    dropout: Probability = 0.5
    """Probability that an element inside a gated resnet is zeroed while training."""
    conditioning: Conditioning = "none"
    """How a context image enters: not at all, stacked on top, or through an encoder."""
    likelihood: Likelihood = "continuous"
    """continuous: density of real-valued pixels under logistics; discretized: probability of the
    256 bytes; gaussian: density under Gaussians that contain the smoothing's noise."""
    atoms: Atoms = ()
    """all: each of the 256 bytes has a probability of its own, for likelihood=discretized and grey
    images."""
    fourier_features: Annotated[int, Meta(ge=0, le=OCTAVES)] = 0
    """Octaves of Fourier features, 0 to 8. They show the network exactly which byte a pixel is; for
    likelihood=discretized."""
    head_filters: Annotated[int, Meta(ge=0, le=LARGEST)] = 0
    """M: channels of a hidden layer of the head, which sees the four pixels around directly; 0 for
    none."""
    smoothing_scale: float = 0.5
    """Standard deviation of the noise that likelihood=gaussian contains; training sets it to its
    own scale."""
    context_layers: Annotated[int, Meta(ge=0, le=DEEPEST)] = 4
    """Gated resnets in the encoder of conditioning="concat"."""
    context_filters: Size | None = None
    """Channels of that encoder; None for n_filters."""
    classes: Classes | None = None
    """The classes that it is conditioned on; training takes those of its images."""

    def __post_init__(self) -> None:
        check(self)
        check_likelihood(self.likelihood, self.atoms, self.smoothing_scale, self.image_channels)
        if self.fourier_features and self.likelihood != "discretized":
            raise SettingError(
                "fourier_features",
                f'need likelihood "discretized", whose pixels are bytes, got "{self.likelihood}"',
            )

    @property
    def n_classes(self) -> int:
        """The number of classes, 0 without any."""
        return len(self.classes.names) if self.classes else 0

    @property
    def n_atoms(self) -> int:
        """J: the number of atoms."""
        return N_BYTES if self.atoms else 0

    @property
    def input_channels(self) -> int:
        """Channels that the network sees of a pixel: its colours, a one and their features."""
        return self.image_channels * (1 + 2 * self.fourier_features) + 1

    @property
    def n_params(self) -> int:
        """P: mixture parameters per pixel, 3K for grey images and 10K for RGB, and one per atom."""
        return (3 if self.image_channels == 1 else 10) * self.n_mix + self.n_atoms

    @property
    def mixture(self) -> MixtureOptions:
        """The kind of a pixel's distribution, as the functional ops take it."""
        return MixtureOptions(
            likelihood=self.likelihood,
            atoms=self.atoms,
            smoothing_scale=self.smoothing_scale,
        )


Role = Literal["noisy", "denoiser", "plain"]
Split = Literal["train", "test"]
Method = Literal["two-step", "single-step", "noisy"]
SmoothingKind = Literal["gaussian", "laplace", "uniform"]
Precision = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adam", "muon"]
LearningRateSchedule = Literal["cosine", "cooldown", "exponential"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a training run is computed: settings without effect on the weights."""

    download: bool = False
    """Whether to download the files into data_dir if they are not there."""
    graph: Switch = "auto"
    """Replay a step as one CUDA graph: auto where that is possible; on, or an error that says why
    not; off."""
    evaluations: Positive = 8
    """How often the held-out images are evaluated, the end included."""


@plain_values
@dataclass(frozen=True)
class TrainConfig(RunSettings):
    """Everything that determines the weights of a training run, and how it is computed.

    Raises ValueError for a field out of range or fields that contradict each other.
    """

    role: Role = "noisy"
    """noisy: p(x~); denoiser: p(x | x~); plain: p(x), the baseline without smoothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: str = "mnist"
    """Data set: mnist, fashion-mnist, cifar10, celeba, folder."""
    data_dir: str | None = None
    """Folder of its files; without one, mnist is the embedded subset of 6,000 images."""
    image_size: Positive | None = None
    """Pixels a side for celeba and folder; None for the data set's own."""
    labels: str | None = None
    """File of labels, as `dsmooth cluster` writes it, in place of the data set's own."""
    classes: bool = False
    """Condition the network on the classes of the images; implied by labels."""
    flip: bool = False
    """Mirror half of the training images left to right, chosen anew at each visit."""
    label_dropout: Probability = 0.0
    """The fraction of the training images whose class is hidden, chosen anew at each visit: the
    network also learns the images of all classes, which have the label -1."""
    smoothing: SmoothingKind = "gaussian"
    """The distribution of x~ given x."""
    scale: PositiveFloat = 0.5
    """Its scale (for gaussian the standard deviation), in units of pixel values in [-1, 1]."""
    clean_noise: Annotated[float, Meta(ge=0)] = 0.0
    """Standard deviation of noise added to the denoiser's target (the paper uses 0.01)."""
    images: Positive | None = None
    """Training images to visit, repeats counted. One of images and budget must be given."""
    budget: PositiveFloat | None = None
    """Minutes of the whole run instead, from the call that trains to its last evaluation: a few
    steps are timed once, which gives the number of images."""
    batch_size: Positive = 32
    """Images per step."""
    accumulate: Positive = 1
    """Parts that a batch is computed in, to save memory; batch_size must be a multiple."""
    optimizer: OptimizerName = "muon"
    """adam: for all parameters; muon: for the kernels, and Adam for gains and biases."""
    learning_rate: PositiveFloat = 3.2e-2
    """Adam's peak learning rate."""
    kernel_rate: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Muon's peak step: the rotation of the kernels, in radians. None for one that falls
    with the square root of the number of steps."""
    rate_factor: PositiveFloat = 1.0
    """Factor of both peak rates. The command line and `preset` set it to 0.15 for a run with init,
    unless they are given a rate: full rates undo what the weights have learned."""
    betas: tuple[Probability, Probability] = (0.9, 0.99)
    """Adam's decay rates."""
    schedule: LearningRateSchedule = "cosine"
    """cosine: falls to 0 at the end; cooldown: constant, then falls in a line to 0 over the last
    fifth of the images; exponential: each step times learning_rate_decay."""
    learning_rate_decay: Share = 1.0
    """Factor per step, for schedule=exponential (the paper uses 0.999995)."""
    warmup_images: Natural = 1000
    """Images over which the learning rate rises from 0."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient; None for no clipping."""
    ema: Probability = 0.9995
    """Largest decay of the moving average of weights; 0 for no average. The average reaches back
    1 / (1 - ema) steps, which should be fewer than the steps over which the rate falls."""
    init: str | None = None
    """Begin with the weights of this run or pair, and with a new optimiser. Its network but
    for classes, its smoothing and its scale become the defaults."""
    data_init: bool = True
    """Whether to set scales and biases from the first batch (data-dependent init)."""
    precision: Precision = "auto"
    """auto: bfloat16 where that is faster, else float32."""
    seed: Seed = 0
    """Decides weights, order, noise and dropout."""
    evaluation_images: Positive = 500
    """Held-out images of each evaluation, always the same with the same noise."""

    def __post_init__(self) -> None:
        check(self)
        if self.kernel_rate is not None and self.optimizer != "muon":
            raise SettingError("kernel_rate", f'needs optimizer "muon", got "{self.optimizer}"')
        if self.label_dropout and not self.has_classes:
            raise SettingError("label_dropout", "needs a model with classes: set", classes=True)
        conditioned = self.model.conditioning != "none"
        if conditioned != (self.role == "denoiser"):
            raise ValueError(
                f'role "{self.role}" does not go with conditioning "{self.model.conditioning}"'
            )
        likelihoods = ["continuous"]
        if self.role != "noisy":  # noisy pixels are not bytes
            likelihoods.append("discretized")
        elif self.smoothing == "gaussian":  # whose noise this likelihood contains
            likelihoods.append("gaussian")
        check_one_of("likelihood", self.model.likelihood, likelihoods)

    @property
    def has_classes(self) -> bool:
        """Whether the network is conditioned on classes."""
        return self.classes or self.labels is not None or self.model.classes is not None


def settled(config: TrainConfig) -> TrainConfig:
    """The settings with what follows from them: whether the network has classes, and the noise that
    likelihood=gaussian contains."""
    model = config.model
    if model.likelihood == "gaussian":
        model = replace(model, smoothing_scale=config.scale)
    return replace(config, model=model, classes=config.has_classes)


@dataclass(frozen=True)
class TrainingRecord:
    """The training that weights come from. Fields are None where that is unknown.

    data, data_sha256: the training images, by name and digest. images: seen in training. loss: what
    bits_per_dim, of held-out images, are. clean_noise: as in `TrainConfig`. weights_sha256:
    the digest of the weights.
    """

    data: str
    seed: int
    clean_noise: float
    weights_sha256: str
    data_sha256: str | None = None
    images: int | None = None
    seconds: float | None = None
    loss: str | None = None
    bits_per_dim: float | None = None


@plain_values
@dataclass(frozen=True)
class ProbeSettings:
    """The input of linear probes and the length of their training.

    Raises ValueError for a field out of range.
    """

    input: Literal["noisy", "clean"] = "noisy"
    """noisy: the networks see only x~, as in the paper; clean: x (the denoiser x given x~)."""
    train_images: Positive | None = None
    """Training images, the first ones; by default all."""
    test_images: Positive | None = None
    """Test images, the first ones; by default all."""
    epochs: Positive = 20
    """Passes of a probe over the training images."""
    seed: Seed = 0
    """Decides the noise, the order of images and the untrained networks."""

    def __post_init__(self) -> None:
        check(self)
