"""Named settings: one literal table, and the function that turns a row into a config."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import asdict, fields, replace
from typing import Any

from .config import FILE_ONLY, OWN, ModelConfig, Role, TrainConfig
from .errors import SettingError
from .fields import Json, flatten

# Meng et al. (ICLR 2021): no averaging, no clipping, no data-dependent init; a stacked denoiser
# with a continuous likelihood. How long they trained is not published: give images or budget.
_PAPER: Json = {
    "optimizer": "adam",
    "betas": (0.9, 0.999),
    "learning_rate": 2e-4,
    "schedule": "exponential",
    "learning_rate_decay": 0.999995,
    "warmup_images": 0,
    "clip_norm": None,
    "ema": 0.0,
    "data_init": False,
    "batch_size": 80,
    "denoiser": {"batch_size": 50, "clean_noise": 0.01},
    "denoiser.model": {"conditioning": "stack", "likelihood": "continuous"},
    "plain.model": {"likelihood": "discretized"},
}
# Optimizer and rates are the defaults of TrainConfig (docs/experiments/009-training-recipe.md).
_OURS: Json = {
    "denoiser.model": {"conditioning": "concat", "likelihood": "discretized"},
    "plain.model": {"likelihood": "discretized"},
}
# Nearly all bits of MNIST name the bytes of its grey pixels (docs/experiments/013-bytes.md).
_BYTES = {"atoms": "all", "fourier_features": 8, "head_filters": 64}
_OURS_MNIST: Json = {
    **_OURS,
    "noisy.model": {"likelihood": "gaussian"},
    "denoiser.model": _OURS["denoiser.model"] | _BYTES,
    "plain.model": _OURS["plain.model"] | _BYTES,
}
_MNIST = {"data": "mnist", "scale": 0.5}
_CIFAR10 = {"data": "cifar10", "scale": 0.3}
_CELEBA = {"data": "celeba", "scale": 0.3, "image_size": 32}
_PHOTOS = {"data": "folder", "scale": 0.3, "image_size": 32}
_F32 = {
    "image_channels": 3,
    "n_filters": 32,
    "n_resnet": 2,
    "n_mix": 10,
    "dropout": 0.0,
    "context_layers": 2,
}
_F40 = {"image_channels": 1, "n_filters": 40, "n_resnet": 5, "n_mix": 10, "dropout": 0.5}
_F160 = {"image_channels": 3, "n_filters": 160, "n_resnet": 5, "n_mix": 10, "dropout": 0.5}
_QUICK = {
    "image_channels": 1,
    "n_filters": 16,
    "n_resnet": 1,
    "n_mix": 5,
    "dropout": 0.0,
    "context_layers": 2,
}

# Plain keys are fields of TrainConfig; "model" has fields of ModelConfig. A key that starts with a
# role is only for that role.
PRESETS: dict[str, Json] = {
    "mnist-quick": {**_OURS_MNIST, **_MNIST, "model": _QUICK, "batch_size": 16},
    "mnist": {**_OURS_MNIST, **_MNIST, "model": _F40, "images": 3_000_000},
    "cifar10": {**_OURS, **_CIFAR10, "model": _F160, "images": 10_000_000},
    "photos": {**_OURS, **_PHOTOS, "model": _F32, "batch_size": 8},
    "mnist-paper": {**_PAPER, **_MNIST, "model": _F40},
    "cifar10-paper": {**_PAPER, **_CIFAR10, "model": _F160},
    "celeba-paper": {**_PAPER, **_CELEBA, "model": _F160},
}

_FIELDS = {field.name for field in fields(TrainConfig)}
_MODEL_FIELDS = {field.name for field in fields(ModelConfig)} - _FIELDS

DESCRIPTIONS = {
    "mnist-quick": "digits within minutes on two CPU cores (concat, discretized, EMA)",
    "mnist": "our settings at the paper's size (concat, discretized, EMA)",
    "cifar10": "our settings at the paper's size (concat, discretized, EMA)",
    "photos": "RGB pictures of your own, 32 x 32, on a CPU (concat, discretized, EMA)",
    "mnist-paper": "the paper's MNIST settings (stack, continuous, no EMA)",
    "cifar10-paper": "the paper's CIFAR-10 settings (stack, continuous, no EMA)",
    "celeba-paper": "the paper's CelebA 32x32 settings (stack, continuous, no EMA)",
}


def preset(name: str, role: Role, **settings: Any) -> TrainConfig:
    """The settings of one role of a preset, some of them replaced.

    settings: fields of `TrainConfig` or of its model: `preset("mnist", "noisy", images=64)`. A
    budget replaces the preset's images. Raises ValueError for an unknown name and for both images
    and a budget, TypeError for an unknown field.
    """
    if name not in PRESETS:
        raise SettingError("preset", f"must be one of {', '.join(PRESETS)}, got {name!r}")
    table = PRESETS[name]
    values = {key: value for key, value in table.items() if key in _FIELDS} | table.get(role, {})
    if "smoothing_scale" in settings:
        raise SettingError(
            "smoothing_scale", "follows from the scale of the noise: set", scale=None
        )
    if settings.get("budget") is not None:
        check_one_length([name for name, value in settings.items() if value is not None])
        values["images"] = None
    network = {key: settings.pop(key) for key in list(settings) if key in _MODEL_FIELDS}
    model = ModelConfig(**table["model"] | table.get(f"{role}.model", {}))
    values |= {"model": model, **settings}
    if isinstance(values["model"], ModelConfig):  # else the settings say what it must be
        values["model"] = replace(values["model"], **network)
    return TrainConfig(role=role, **values)


def check_one_length(names: Collection[str]) -> None:
    """Raise ValueError for a budget and images, both of which say how long a run is."""
    if {"images", "budget"} <= {*names}:
        raise SettingError(("images", "budget"), "both say how long the run is: leave one out")


def as_flag(name: str, value: object = True) -> str:
    """The option that gives a field its value."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return shlex.join([f"--{option}", *map(str, value if isinstance(value, list) else [value])])


def train_command(config: TrainConfig) -> str:
    """The `dsmooth train` that begins with these settings, without a path of this machine."""
    values = flatten(asdict(config))
    named = {"data_dir": "--data-dir FOLDER", "init": "--init RUN", "labels": "--labels FILE"}
    # Some follow from the scale, the data and prolonging, images from a budget.
    skipped = {"role", "model.smoothing_scale", "model.class_names", "schedule_from", *named}
    skipped |= {f"model.{name}" for name in ("class_shares", "labels_sha256", "hidden_labels")}
    skipped |= {"data"} if config.data == OWN else set()
    skipped |= {"budget"} if config.images is not None else set()
    starts = []
    for name in PRESETS:
        theirs = flatten(asdict(preset(name, config.role)))
        keys = [key for key in values if key not in skipped and values[key] != theirs[key]]
        options = {key.rpartition(".")[2]: values[key] for key in keys}
        if not options.keys() & FILE_ONLY:
            starts.append([f"--preset {name}", *map(as_flag, options, options.values())])
    start, *changes = min(starts, key=len, default=["--config CONFIG"])
    folders = [option for name, option in named.items() if values[name] is not None]
    words = ["dsmooth train", config.role, start, *folders, *changes]
    if config.data == OWN:
        words.append("--print-config  # for dsmooth.train(settings, dataset=IMAGES)")
    return " ".join(words)
