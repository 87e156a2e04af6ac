"""The command line: a class per verb, whose fields are its options; without torch.

`options_train` has those of `dsmooth train`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from ..config import Method, Precision, ProbeSettings, Split
from ..presets import PRESETS

# A flag that defaults to False; hides --no-X from the help.
Flag = FlagCreatePairsOff[bool]
MODELS_HELP = """mnist, the pair that comes with the package; a saved pair; the run folders of a
noisy model and of its denoiser, or a folder with both; or one run folder."""
Folders = Annotated[Positional[tuple[Path, ...]], arg(help=MODELS_HELP, help_behavior_hint="")]
DEFAULT_PRESET = "mnist-quick"
PRESET_HELP = "Settings to start from: " + "; ".join(
    f"{name}: {preset.description}" for name, preset in PRESETS.items()
)


@dataclass(frozen=True)
class OnDevice:
    """How the command runs. Devices and threads change results only by rounding."""

    threads: int | None = None
    """CPU threads; by default all cores."""
    quiet: Flag = False
    """Print only errors."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a CUDA device if there is one. Drawing needs
    compute capability 8.0 for that: with an older one auto draws on the CPU and says so."""


@dataclass(frozen=True)
class Computing(OnDevice):
    __doc__ = OnDevice.__doc__

    precision: Precision = "auto"
    """Number format of the networks; auto draws in bfloat16 where that is faster (a CUDA device, a
    processor with AMX, an AMD processor with AVX512-BF16), and uses float32 otherwise. Seeds give
    different images in the two precisions, equally good."""


@dataclass(frozen=True)
class DataOptions:
    """Images of a data set."""

    data: str | None = None
    """Data set; by default the one that the models were trained on, else mnist."""
    data_dir: Path | None = None
    """Folder of its files; by default where the run found them, else the embedded MNIST subset."""
    image_size: int | None = None
    """Pixels a side for celeba and folder; by default as the run had it."""


@dataclass(frozen=True)
class Drawing:
    """Settings that determine the images, together with the models."""

    seed: int | None = 0
    """Decides the images; None draws a seed and prints it."""
    method: Method = "two-step"
    """two-step: x~ then x given x~; single-step: posterior mean of x~; noisy: x~ itself."""
    label: str | None = None
    """For models with classes: the class of all images, by its name or number, or each for classes
    in turn; own for the labels of images to complete. By default the class of each image is drawn
    by the shares of the training images, and completions are drawn without a class."""
    guidance: float = 0.0
    """Above 0 for images that are more typical of their class, of models with classes."""
    temperature: float = 1.0
    """Below 1 for likelier pixels, above 1 for more varied ones."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a pair, or from one trained model, into files.

    A long call with a folder as --out can be stopped and repeated: it continues where it was. Under
    torchrun several processes (and GPUs) draw the same images together.
    """

    models: Folders = (Path("mnist"),)
    count: Annotated[int, arg(aliases=["-n"])] = 64
    """Number of images."""
    out: tuple[Path, ...] = (Path("samples.png"),)
    """Files to write: .png for a grid, .npz for an array `x` (N, C, H, W) float32 in [-1, 1]; or a
    folder, a path without suffix, for a numbered PNG of each image. A larger --count adds to it."""
    first_index: int = 0
    """Number of the first image in the stream that --seed names."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class Complete:
    """Draw the missing part of images from a pair, or from one trained model.

    Known pixels are kept; what is missing is drawn several times for each image. Writes a picture
    with one row per image: the original, the part that is given, the draws. Under torchrun several
    processes (and GPUs) draw them together.
    """

    models: Folders = (Path("mnist"),)
    images: Path | None = None
    """Images to complete, also as the last of the models: an image file, a folder of them, a .npz
    or a .npy; by default held-out images of the model's data."""
    count: Annotated[int, arg(aliases=["-n"])] = 8
    """How many of these images to take, the first ones."""
    keep_top: float | None = None
    """Fraction of the rows that are given, from the top; by default half of them."""
    mask: Path | None = None
    """A picture of the images' size instead: its white pixels are given, its black ones missing."""
    draws: int = 8
    """Completions of each image."""
    out: tuple[Path, ...] = (Path("completed.png"),)
    """Files to write: .png for the picture, .npz for arrays `x` (the completions, N * draws, C, H,
    W), `original` (N, C, H, W) and `mask` (1, H, W)."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class Cluster:
    """Name images without labels, by clusters of a noisy model's features.

    Clusters of equal size of the training images; held-out images get the nearest. Writes
    labels.npz, which `dsmooth train --labels` takes, and clusters.png with a row for each cluster.
    """

    models: Folders = (Path("mnist"),)
    clusters: int = 10
    """Number of clusters."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    seed: int = 0
    """Decides where the clusters begin."""
    out: Path = Path("clusters")
    """Folder for the labels and the picture."""
    execution: OmitArgPrefixes[OnDevice] = OnDevice()


@dataclass(frozen=True)
class BitsOptions:
    """Bits/dim of held-out images, in every convention.

    A pair gives a bound by Monte Carlo over noise, a plain model the exact number. Prints a table
    and writes JSON. Numbers that compare with the literature are marked. Under torchrun several
    processes (and GPUs) share the images.
    """

    models: Folders
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    split: Split | Literal["all"] | None = None
    """Images of the data set; by default those of test, or all of a folder that the models were not
    trained on."""
    limit: int | None = None
    """Take the first images only, for a quick look."""
    n_noise: int = 4
    """Draws of x~ per image for a pair: repeats of the bound, and n of the importance-weighted
    one."""
    batch_size: int = 100
    """Images at a time; does not change the result."""
    seed: int = 0
    """Decides the noise."""
    plain: Path | None = None
    """Plain PixelCNN++ to compare with the pair: mnist-plain, or the folder of a run."""
    out: Path = Path("bits_per_dim.json")
    """File for the numbers; - for the standard output."""
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class FrechetOptions:
    """Fréchet distance of samples to real images.

    Called FID only with the 2015 Inception network. The table also has the distance of other real
    images to the same reference. The extra "fid" adds kernel distance, Inception score, precision
    and recall. Values in [-1, 1] become bytes by rounding and clamping. Prints a table and writes
    JSON.
    """

    samples: Annotated[Positional[Path], arg(help_behavior_hint="")]
    """Samples of any program in a .npz, a .npy or a folder of image files; draw some by `dsmooth
    sample MODELS -n 1000 --out samples.npz`."""
    count: Annotated[int | None, arg(aliases=["-n"])] = None
    """Take as many of the samples, at random; by default all."""
    extractor: str = "mnist-classifier"
    """mnist-classifier, which comes with the package; or a name that torch-fidelity has (needs the
    extra "fid"): inception-v3-compat for FID, dinov2-vit-l-14, clip-vit-b-32, vgg16 and others."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    split: Split = "train"
    """Real images to compare with; the other split shows the distance of real images."""
    reference: Path | None = None
    """Another reference: a file or folder of images; or a .npz with mean mu and covariance sigma of
    the extractor's features, as pytorch-fid writes it."""
    seed: int = 0
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


@dataclass(frozen=True)
class Reproduce:
    """The paper's experiments in one command: draw, measure, probe, and write report.html.

    Takes the models that come with the package, or --models, or with --budget trains a pair and a
    plain baseline first. A stage whose file is in the folder is skipped, so a stopped call can be
    repeated; delete the file of a stage to repeat it. Under torchrun several processes (and GPUs)
    share every stage.
    """

    out: Path = Path("reproduction")
    """Folder for runs, pictures, results.json and report.html."""
    budget: float | None = None
    """Train models first, for so many minutes in all."""
    preset: Annotated[str | None, arg(help=PRESET_HELP, metavar="|".join(PRESETS))] = None
    models: Annotated[tuple[Path, ...], arg(help_behavior_hint="")] = ()
    """Take these models, as `dsmooth evaluate` does, and perhaps the folder of a plain model."""
    dataset: OmitArgPrefixes[DataOptions] = DataOptions()
    download: Flag = False
    """Download the data set into --data-dir if it is not there, and train on it."""
    # The error of the Fréchet distance doubles from 1,000 to 500, and hardly grows to 700.
    count: Annotated[int, arg(aliases=["-n"])] = 700
    """Samples of each kind: the first 64 for the pictures, all for the Fréchet distance."""
    scored_images: int = 500
    """Held-out images whose bits/dim are measured."""
    probe_train_images: int = 1000
    """Training images of the linear probes."""
    probe_test_images: int = 250
    """Test images of the linear probes."""
    extractor: str = "auto"
    """Extractor of the Fréchet distance: auto (the package's classifier for MNIST, none for other
    data), or one of `dsmooth evaluate fid --help`."""
    seed: int = 0
    """Decides weights, noise and samples."""
    execution: OmitArgPrefixes[Computing] = Computing()


@dataclass(frozen=True)
class Doctor:
    """Say what was built, what this machine has, and run a one-second self-test."""
