"""The command line: a class per verb, whose fields are its options; without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    OmitArgPrefixes,
    Positional,
    UseAppendAction,
    arg,
)

from ..config import Method, Natural, Positive, Precision, ProbeSettings, Role, Seed, Split
from ..fields import SettingError, nearest
from ..presets import DEFAULT_PRESET, PRESETS, RGB_PRESET, SETTINGS

T = TypeVar("T")
# An option that is not given by default; its help says what happens then.
Maybe = Annotated[DisallowNone[T | None], arg(help_behavior_hint="")]
# A flag that defaults to False; hides --no-X from the help.
Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]
Count = Annotated[Positive, arg(aliases=["-n"])]
Several = Annotated[int, msgspec.Meta(ge=2)]
MODELS_HELP = (
    "mnist, a pair that comes with the package; a saved pair; the run folders of a noisy model and "
    "of its denoiser, or a folder with both; or one run folder."
)
Folders = Annotated[
    Positional[tuple[Path, ...]], arg(help=MODELS_HELP, help_behavior_hint="", metavar="MODELS")
]
PRESET_HELP = (
    "Settings to start from. mnist-quick: digits within minutes on a CPU; photos: RGB images of "
    "your own, 32 x 32; mnist, cifar10: our settings at the paper's size; mnist-paper and others: "
    f"the paper's settings. By default {DEFAULT_PRESET}, or {RGB_PRESET} for RGB images."
)
Preset = Annotated[
    DisallowNone[str | None],
    arg(help=PRESET_HELP, help_behavior_hint="", metavar="|".join(PRESETS)),
]


class Writing:
    """A verb that writes what `out` names."""

    out: Any

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files or the folder to write."""
        return self.out if isinstance(self.out, tuple) else (self.out,)


@dataclass(frozen=True)
class OnDevice:
    """How the command runs. Threads and devices change results only by rounding."""

    threads: Maybe[int] = None
    """CPU threads; by default all cores."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a CUDA device that can do the work, else the CPU."""


@dataclass(frozen=True)
class Computing(OnDevice):
    __doc__ = OnDevice.__doc__

    precision: Precision = "auto"
    """Number format of the networks. auto: for training and sampling bfloat16 where it is faster,
    else float32; for bits/dim and probes float32. Seeds give other images in the other precision,
    equally good."""


@dataclass(frozen=True)
class DataOptions:
    """Images of a data set."""

    data: Maybe[str] = None
    """Data set; by default the one that the models were trained on, else mnist."""
    data_dir: Maybe[Path] = None
    """Folder of its files; by default the run's, else the embedded MNIST subset."""


@dataclass(frozen=True)
class Drawing:
    """Settings that determine the images, together with the models."""

    seed: int | None = 0
    """Decides the images; None takes a random seed and prints it."""
    method: Method = "two-step"
    """two-step: a noisy image, then the denoiser's sample given it. single-step: a noisy image,
    then the clean image's mean given it, by the noisy model's gradient; needs no denoiser.
    noisy: the noisy image itself. A single network samples as it is, unless single-step."""
    label: Maybe[str] = None
    """Class of all images, by name or number; each: the classes in turn; own: those of images to
    complete. By default classes are random, as often as in training, and completions have none."""
    guidance: float = 0.0
    """Above 0 for images that are more typical of their class."""
    temperature: float = 1.0
    """Below 1 for likelier pixels, above 1 for more varied ones."""


@dataclass(frozen=True)
class Train:
    """Train one model: noisy p(x~), denoiser p(x | x~), or plain p(x); or a pair.

    A pair is a noisy model and its denoiser, trained one after the other into the folders noisy and
    denoiser of --out, each for half of --budget. Writes config.json, log.jsonl,
    checkpoint.safetensors, model.safetensors and samples-*.png into --out. Ctrl-C saves and exits;
    --resume continues, bit for bit as without the stop. Under torchrun several processes (and GPUs)
    train together. Options that are not given are as in the preset; docs/api/training.md lists all
    settings.
    """

    role: Positional[Literal[Role, "pair"]]
    """Which model."""
    folder: Annotated[Positional[Path | None], arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder of images to train on: --data folder --data-dir FOLDER."""
    preset: Preset = None
    config: Maybe[Path] = None
    """Start from the settings in a file instead: a run's config.json, or from --print-config."""
    data: Maybe[str] = None
    """Data set: mnist, fashion-mnist, cifar10, celeba, folder."""
    data_dir: Maybe[Path] = None
    """Folder of its files; without one, mnist is the embedded subset of 6,000 images."""
    image_size: Maybe[int] = None
    """Pixels a side for celeba and folder; by default the data set's own."""
    labels: Maybe[Path] = None
    """File of labels, as `dsmooth cluster` writes it, in place of the data set's own."""
    classes: Flag = False
    """Condition the network on the classes of the images; so does --labels."""
    label_dropout: Maybe[float] = None
    """Fraction of the training images whose class is hidden, which guidance needs."""
    flip: Flag = False
    """Mirror half of the training images left to right, chosen anew at each visit."""
    images: Maybe[int] = None
    """Training images to visit, repeats counted."""
    budget: Maybe[float] = None
    """Minutes of the whole run instead; a few timed steps make it a number of images."""
    init: Maybe[Path] = None
    """Begin with the weights of this run or pair, whose network becomes the default."""
    batch_size: Maybe[int] = None
    """Images per step."""
    learning_rate: Maybe[float] = None
    """Peak learning rate of Adam."""
    n_filters: Maybe[int] = None
    """F: channels of each stream of the network."""
    n_resnet: Maybe[int] = None
    """R: gated resnets per block."""
    seed: Maybe[int] = None
    """Decides weights, order, noise and dropout; by default 0."""
    set: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help_behavior_hint="")
    ] = ()
    """Any other setting, repeated: --set ema=0.999 --set schedule=cooldown."""
    out: Maybe[Path] = None
    """Folder of the run; by default runs/ROLE, of a pair runs/pair."""
    resume: Flag = False
    """Continue the run in --out, whose settings are the defaults, or start it."""
    tensorboard: Flag = False
    """Also write event files of the evaluations (needs the extra "tensorboard")."""
    print_config: Flag = False
    """Print the settings as JSON and stop; what follows from the images is left open."""
    execution: OmitArgPrefixes[Computing] = field(default_factory=Computing)


def given_settings(options: Train) -> dict[str, Any]:
    """The settings in the options, by name. Raises ValueError for some that contradict others."""
    values = {name: value for name, value in vars(options).items() if name in SETTINGS}
    given = {name: x for name, x in values.items() if x is not None and x is not False}
    if options.execution.precision != "auto":
        given["precision"] = options.execution.precision
    more = [setting_of_text(text) for text in options.set]
    if options.folder is not None:
        more += [("data", "folder"), ("data_dir", options.folder)]
    for name, value in more:
        if name in given:
            raise SettingError(name, "was given twice: leave one out")
        given[name] = value
    return given


def setting_of_text(text: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE. Raises ValueError for a name that no setting has."""
    name, sign, value = text.partition("=")
    name = name.replace("-", "_")
    if not sign or name not in SETTINGS:
        words = f"takes NAME=VALUE of a setting, got {text}{nearest(name, SETTINGS)}"
        raise SettingError("set", words)
    if value == "None":
        return name, None
    try:
        return name, msgspec.convert(json.loads(value), SETTINGS[name])
    except ValueError:
        return name, value  # text, or a value that the settings refuse


@dataclass(frozen=True)
class Sample(Writing):
    """Sample images from a pair, or from one trained model, into files.

    A long call with a folder as --out can be stopped and repeated: it continues where it was. Under
    torchrun several processes (and GPUs) sample the same images together.
    """

    models: Folders = (Path("mnist"),)
    count: Count = 64
    """Number of images."""
    out: tuple[Path, ...] = (Path("samples.png"),)
    """Files to write: .png for a grid, .npz for an array `x` (N, C, H, W) float32 in [-1, 1]; or a
    folder, a path without suffix, for a numbered PNG of each image. A larger --count adds to it."""
    first_index: Natural = 0
    """Number of the first image in the stream that --seed names."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class Complete(Writing):
    """Sample the missing part of images from a pair, or from one trained model.

    Known pixels are kept; what is missing is sampled several times for each image. Writes a PNG
    with one row per image: the original, the known part, the completions. Under torchrun several
    processes (and GPUs) sample them together.
    """

    models: Folders = (Path("mnist"),)
    images: Maybe[Path] = None
    """Images to complete, also as the last of the models: an image file, a folder of them, a .npz
    or a .npy; by default held-out images of the model's data."""
    count: Count = 8
    """How many of these images to take, the first ones."""
    keep_top: Maybe[float] = None
    """Fraction of the rows that are known, from the top; by default half of them."""
    mask: Maybe[Path] = None
    """An image file of the same size instead: white pixels are known, black ones missing."""
    draws: Positive = 8
    """Completions of each image."""
    out: tuple[Path, ...] = (Path("completed.png"),)
    """Files to write: .png for the grid, .npz for arrays `x` (the completions, N * draws, C, H,
    W), `original` (N, C, H, W) and `mask` (1, H, W)."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class Cluster:
    """Label images without labels, by clusters of a noisy model's features.

    Clusters of equal size of the training images; held-out images get the nearest. Writes
    labels.npz, which `dsmooth train --labels` takes, and clusters.png with a row for each cluster.
    """

    models: Folders = (Path("mnist"),)
    clusters: Several = 10
    """Number of clusters."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    seed: Seed = 0
    """Decides where the clusters begin."""
    out: Path = Path("clusters")
    """Folder for the labels and the PNG."""
    execution: OmitArgPrefixes[OnDevice] = OnDevice()

    @property
    def outputs(self) -> tuple[Path, Path]:
        """The labels and the PNG."""
        return self.out / "labels.npz", self.out / "clusters.png"


@dataclass(frozen=True)
class BitsOptions(Writing):
    """Bits/dim of held-out images, in every convention.

    A pair gives a bound by Monte Carlo over noise, a plain model the exact number. Prints a table
    and writes JSON. Numbers that compare with the literature are marked. Under torchrun several
    processes (and GPUs) share the images.
    """

    models: Folders
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    split: Maybe[Split | Literal["all"]] = None
    """Images of the data set; by default test, or all of a folder that no model was trained on."""
    limit: Maybe[Positive] = None
    """Take the first images only, for a quick look."""
    n_noise: Positive = 4
    """Samples of the noise per image, for a pair."""
    batch_size: Positive = 100
    """Images at a time; does not change the result."""
    seed: Seed = 0
    """Decides the noise."""
    plain: Maybe[Path] = None
    """Plain PixelCNN++ to compare with the pair: mnist-plain, or the folder of a run."""
    out: Path = Path("bits_per_dim.json")
    """File for the numbers; - for the standard output."""
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class FrechetOptions(Writing):
    """Fréchet distance of samples to real images.

    Called FID only with the 2015 Inception network. The table also has the distance of other real
    images to the same reference statistics. The extra "fid" adds kernel distance, Inception score,
    precision and recall. Values in [-1, 1] become bytes by rounding and clamping. Prints a table
    and writes JSON.
    """

    samples: Annotated[Positional[Path], arg(help_behavior_hint="")]
    """Samples of any program: a .npz, a .npy or a folder of image files."""
    count: Annotated[Maybe[Several], arg(aliases=["-n"])] = None
    """Take as many of the samples, at random; by default all."""
    extractor: str = "mnist-classifier"
    """mnist-classifier, which comes with the package; or a name that torch-fidelity has (needs the
    extra "fid"): inception-v3-compat for FID, dinov2-vit-l-14, clip-vit-b-32, vgg16 and others."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    split: Split = "train"
    """Real images to compare with; the other split shows the distance of real images."""
    reference: Maybe[Path] = None
    """Another reference: a file or folder of images; or a .npz with mean mu and covariance sigma of
    the extractor's features, as pytorch-fid writes it."""
    seed: Seed = 0
    """Decides the bootstrap."""
    out: Path = Path("frechet.json")
    """File for the numbers; - for the standard output."""
    execution: OmitArgPrefixes[OnDevice] = OnDevice()


@dataclass(frozen=True)
class Probe:
    """Train linear probes on the features of both networks of a pair.

    Writes probes.json with the test accuracy after each block and of all blocks together, and a
    PNG per network. Controls are the pixels, a plain model if given, and untrained networks. A
    part of the training images chooses the best probe. A stopped call can be repeated: it continues
    where it was. Under torchrun several processes (and GPUs) compute the features together.
    """

    models: Folders
    settings: OmitArgPrefixes[ProbeSettings] = field(default_factory=ProbeSettings)
    """Input of the probes, and the length of their training."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    out: Path = Path("probes")
    """Folder for the results."""
    execution: OmitArgPrefixes[Computing] = Computing()

    @property
    def outputs(self) -> tuple[Path, Path, Path]:
        """The accuracies, and a PNG of those of the noisy model and of the denoiser."""
        return self.out / "probes.json", self.out / "noisy.png", self.out / "denoiser.png"


@dataclass(frozen=True)
class Reproduce:
    """The paper's experiments in one command: sample, measure, probe, and write report.html.

    Takes the models that come with the package, or --models, or with --budget trains a pair and a
    plain baseline first. A stage whose file is in the folder is skipped, so a stopped call can be
    repeated; delete the file of a stage to repeat it. Under torchrun several processes (and GPUs)
    share every stage.
    """

    out: Path = Path("reproduction")
    """Folder for runs, images, results.json and report.html."""
    budget: Maybe[float] = None
    """Train models first, for so many minutes in all."""
    preset: Preset = None
    models: Annotated[tuple[Path, ...], arg(help_behavior_hint="")] = ()
    """Take these models, as `dsmooth evaluate` does, and perhaps the folder of a plain model."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    download: Flag = False
    """Download the data set into --data-dir if it is not there, and train on it."""
    count: Count = 700
    """Samples of each kind: the first 64 for the grids, all for the Fréchet distance."""
    extractor: str = "auto"
    """Extractor of the Fréchet distance: auto (the package's classifier for MNIST, none for other
    data), or one of `dsmooth evaluate fid --help`."""
    seed: Seed = 0
    """Decides weights, noise and samples."""
    execution: OmitArgPrefixes[Computing] = Computing()

    @property
    def outputs(self) -> tuple[Path]:
        """The report."""
        return (self.out / "report.html",)


@dataclass(frozen=True)
class Doctor:
    """Say what was built, what this machine has, and run a one-second self-test."""
