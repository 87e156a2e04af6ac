"""The options of `dsmooth train`, and the settings that they give; without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from ..config import Role
from ..presets import PRESETS, check_one_length, setting_of_text
from .options import DEFAULT_PRESET, PRESET_HELP, Computing, Flag

RGB_PRESET = "photos"
TRAIN_PRESET_HELP = (
    f"{PRESET_HELP}. By default {DEFAULT_PRESET}, or {RGB_PRESET} for RGB images; the channels of "
    "a network are those of the images"
)


@dataclass(frozen=True)
class Train:
    """Train one model: noisy p(x~), denoiser p(x | x~), or plain p(x); or a pair.

    A pair is a noisy model and its denoiser, trained one after the other into the folders noisy and
    denoiser of --out, each for half of --budget. FOLDER means --data folder --data-dir FOLDER.
    Writes config.json, log.jsonl, checkpoint.safetensors, model.safetensors and samples-*.png into
    the folder --out. Ctrl-C saves and exits; --resume continues, bit for bit as without the stop.
    Under torchrun several processes (and GPUs) train together. Options that are not given are as in
    the preset; docs/api/training.md lists all settings.
    """

    role: Positional[Literal[Role, "pair"]]
    """Which model."""
    folder: Annotated[Positional[Path | None], arg(metavar="FOLDER")] = None
    """Folder of images to train on."""
    preset: Annotated[str | None, arg(help=TRAIN_PRESET_HELP, metavar="|".join(PRESETS))] = None
    config: Path | None = None
    """JSON file with the settings to start from, instead of a preset: the config.json of a run, or
    what --print-config prints."""
    data: str | None = None
    """Data set: mnist, fashion-mnist, cifar10, celeba, folder."""
    data_dir: str | None = None
    """Folder of its files; without one, mnist is the embedded subset of 6,000 images."""
    image_size: int | None = None
    """Pixels a side for celeba and folder; by default the data set's own."""
    labels: str | None = None
    """File of labels, as `dsmooth cluster` writes it, in place of the data set's own."""
    classes: Flag = False
    """Condition the network on the classes of the images; so does --labels."""
    label_dropout: float | None = None
    """Fraction of the training images whose class is hidden, which guidance needs."""
    flip: Flag = False
    """Mirror half of the training images left to right, drawn anew at each visit."""
    images: int | None = None
    """Training images to visit, repeats counted."""
    budget: float | None = None
    """Minutes of the whole run instead: a few steps are timed once, and the number of images is
    set. On a quiet machine the run ends within about 15 % of that."""
    init: str | None = None
    """Begin with the weights of this run or pair: its network but for classes, its smoothing and
    its scale become the defaults."""
    batch_size: int | None = None
    """Images per step."""
    learning_rate: float | None = None
    """Peak learning rate of Adam."""
    n_filters: int | None = None
    """F: channels of each stream of the network."""
    n_resnet: int | None = None
    """R: gated resnets per block."""
    seed: int | None = None
    """Decides weights, order, noise and dropout; by default 0."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """Any other setting, repeated: --set ema=0.999 --set schedule=cooldown."""
    out: Path | None = None
    """Folder of the run; by default runs/ROLE, of a pair runs/pair."""
    resume: Flag = False
    """Continue the run in --out, whose settings are the defaults, or start it if there is none."""
    tensorboard: Flag = False
    """Also write event files of the evaluations (needs the extra "tensorboard")."""
    print_config: Flag = False
    """Print the settings as JSON and stop; what follows from the images is left open."""
    execution: OmitArgPrefixes[Computing] = field(default_factory=Computing)


# Options that are settings.
SETTINGS = (
    *("data", "data_dir", "image_size", "labels", "classes", "label_dropout", "flip", "images"),
    *("budget", "init", "batch_size", "learning_rate", "n_filters", "n_resnet", "seed"),
)


def given_settings(options: Train) -> dict[str, Any]:
    """The settings in the options, by name. Raises ValueError for some that contradict others."""
    values = {name: getattr(options, name) for name in SETTINGS}
    left_out = None, False  # compared as objects: 0 is a value
    given = {k: v for k, v in values.items() if not any(v is none for none in left_out)}
    if options.execution.precision != "auto":
        given["precision"] = options.execution.precision
    more = [setting_of_text(text) for text in options.set]
    if options.folder is not None:
        more += [("data", "folder"), ("data_dir", str(options.folder))]
    for name, value in more:
        if name in given:
            raise ValueError(f"{name} was given twice: leave one out")
        given[name] = value
    check_one_length(given)
    if "budget" in given:
        given["images"] = None
    if "labels" in given:
        given["classes"] = True
    return given
