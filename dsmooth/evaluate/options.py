"""What `dsmooth evaluate` can be asked: one class per command, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from ..config import Method

Split = Literal["train", "test"]


@dataclass(frozen=True)
class BitsOptions:
    """Bits/dim of a pair on held-out images: a bound by Monte Carlo over noise, every convention.

    Prints a table and writes JSON. What is comparable with the literature says so.
    """

    models: Positional[tuple[Path, ...]]
    """A saved pair, or the run folders of a noisy model and of its denoiser."""
    plain: Path | None = None
    """Run folder of a plain PixelCNN++ to score beside the pair."""
    data: str | None = None
    """Data set; by default the one that the run was trained on, mnist for a saved pair."""
    data_dir: Path | None = None
    """Where its files are; by default where the run found them, else the embedded MNIST subset."""
    image_size: int | None = None
    """Pixels a side for celeba and folder; by default as the run had it."""
    split: Split = "test"
    """Which images."""
    limit: int | None = None
    """Score the first images only, for a quick look."""
    n_noise: int = 4
    """Draws of x~ per image: repeats of the bound, and n of the importance-weighted one."""
    clean_noise: float | None = None
    """Standard deviation of noise on the target of the density; by default that of training."""
    batch_size: int = 100
    """Images at a time; does not change the result."""
    seed: int = 0
    """Decides the noise."""
    out: Path = Path("bits_per_dim.json")
    """File for the numbers."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True)
class FrechetOptions:
    """Fréchet distance of samples to real images, with kernel distance and Inception score.

    Called FID only with the 2015 Inception network. Beside it stands the distance of other real
    images to the same reference. Values in [-1, 1] become bytes by rounding and clamping. Prints a
    table and writes JSON.
    """

    samples: Positional[tuple[Path, ...]]
    """What to score: a saved pair, the run folders of a noisy model and of its denoiser, or one
    run folder, from which images are drawn; or a .npz, a .npy, a folder of .npy shards or of image
    files."""
    count: Annotated[int | None, arg(aliases=["-n"])] = None
    """Samples to draw (1,000 by default), or the first of a file (all by default)."""
    extractor: str = "mnist-classifier"
    """mnist-classifier; inception (needs the extra "fid"); or a torch.nn.Module of your own as
    module:attribute or file.py:attribute."""
    weights: Path | None = None
    """File of the extractor's weights, instead of the package's or the published ones."""
    data: str | None = None
    """Data set of the real images; by default the one that the run was trained on, else mnist."""
    data_dir: Path | None = None
    """Where its files are; by default where the run found them, else the embedded MNIST subset."""
    image_size: int | None = None
    """Pixels a side for celeba and folder; by default as the run had it."""
    split: Split = "train"
    """Real images to compare with; the other split gives the floor."""
    reference: Path | None = None
    """Statistics that an earlier call saved, to compare with instead."""
    save_reference: Path | None = None
    """Save the statistics of the real images as .npz."""
    method: Method = "two-step"
    """How a pair draws."""
    temperature: float = 1.0
    """Of the draws."""
    seed: int = 0
    """Decides the samples and the subsets of the kernel distance."""
    keep: Path | None = None
    """Folder for drawn samples, which a call with the same models and settings uses again; by
    default one beside --out that is named after them."""
    subsets: int = 100
    """Subsets of the kernel distance."""
    subset_size: int = 1000
    """Images in each."""
    batch_size: int = 100
    """Images at a time; does not change the result."""
    out: Path = Path("frechet.json")
    """File for the numbers."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True)
class ClassifierOptions:
    """Train the small MNIST classifier whose features stand in for Inception's.

    The package has its weights; this makes them again, or others.
    """

    out: Path
    """File for the weights, .safetensors."""
    data_dir: Path | None = None
    """Folder of the full MNIST; without one, the embedded subset, which gives a worse one."""
    epochs: int | None = None
    """Passes over the training images."""
    seed: int = 0
    """Decides the weights, on one machine with one number of threads."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True)
class Evaluate:
    """Measure models and samples: bpd, fid, train-classifier."""

    what: OmitArgPrefixes[
        Annotated[BitsOptions, subcommand("bpd", prefix_name=False)]
        | Annotated[FrechetOptions, subcommand("fid", prefix_name=False)]
        | Annotated[ClassifierOptions, subcommand("train-classifier", prefix_name=False)]
    ]
