"""Named settings: one table, and the function that looks up a row of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from .config import DERIVED, ModelConfig, Role, TrainConfig, settled
from .fields import SettingError, check_choices, types_of

_F32 = ModelConfig(3, n_filters=32, n_resnet=2, dropout=0.0, context_layers=2)
_F40 = ModelConfig(1, n_filters=40, n_resnet=5, dropout=0.5)
_F160 = ModelConfig(3, n_filters=160, n_resnet=5, dropout=0.5)
_QUICK = ModelConfig(1, n_filters=16, n_resnet=1, n_mix=5, dropout=0.0, context_layers=2)

# Meng et al. (ICLR 2021): no averaging, no clipping, no data-dependent init; a stacked denoiser
# with a continuous likelihood. How long they trained is not published: give images or budget.
_PAPER = TrainConfig(
    optimizer="adam",
    betas=(0.9, 0.999),
    learning_rate=2e-4,
    schedule="exponential",
    learning_rate_decay=0.999995,
    warmup_images=0,
    ema=0.0,
    data_init=False,
    batch_size=80,
)


def _paper(noisy: TrainConfig) -> dict[Role, TrainConfig]:
    """The paper's settings: a stacked denoiser, continuous likelihoods, no average."""
    stack = replace(noisy.model, conditioning="stack")
    denoiser = replace(noisy, role="denoiser", model=stack, batch_size=50, clean_noise=0.01)
    plain = replace(noisy, role="plain", model=replace(noisy.model, likelihood="discretized"))
    return {"noisy": noisy, "denoiser": denoiser, "plain": plain}


def _ours(noisy: TrainConfig) -> dict[Role, TrainConfig]:
    """Our settings: a denoiser with an encoder, likelihoods of bytes, averaged weights."""
    # Optimizer and rates are the defaults of TrainConfig (docs/experiments/009-training-recipe.md).
    network = replace(noisy.model, likelihood="discretized")
    if noisy.data == "mnist":
        # Nearly all bits of MNIST name the bytes of grey pixels (docs/experiments/013-bytes.md).
        network = replace(network, atoms="all", fourier_features=8, head_filters=64)
    if noisy.data != "cifar10":
        noisy = replace(noisy, model=replace(noisy.model, likelihood="gaussian"))
    denoiser = replace(network, conditioning="concat")
    if noisy.data == "folder":  # with so little noise (docs/experiments/028-photographs-trials.md)
        denoiser = replace(denoiser, n_mix=1)
    return {
        "noisy": noisy,
        "denoiser": replace(noisy, role="denoiser", model=denoiser),
        "plain": replace(noisy, role="plain", model=network),
    }


PRESETS = {
    "mnist-quick": _ours(TrainConfig(model=_QUICK, images=24_000, batch_size=16)),
    "mnist": _ours(TrainConfig(model=_F40, images=3_000_000)),
    "cifar10": _ours(TrainConfig(data="cifar10", scale=0.3, model=_F160, images=10_000_000)),
    "photos": _ours(TrainConfig(data="folder", scale=0.2, image_size=32, model=_F32, batch_size=8)),
    "mnist-paper": _paper(replace(_PAPER, model=_F40)),
    "cifar10-paper": _paper(replace(_PAPER, data="cifar10", scale=0.3, model=_F160)),
    "celeba-paper": _paper(replace(_PAPER, data="celeba", scale=0.3, image_size=32, model=_F160)),
}
# Without another name, and for images in colour.
DEFAULT_PRESET, RGB_PRESET = "mnist-quick", "photos"

# Factor of the rates of a run that begins with given weights (docs/experiments/028).
FINE_TUNING = 0.15

# The settings of a run and of its network that a user may give, and their types.
SETTINGS = {
    name: kind
    for name, kind in {**types_of(ModelConfig), **types_of(TrainConfig)}.items()
    if name not in ("role", "model", "smoothing_scale", "image_channels")
}
_MODEL_FIELDS = types_of(ModelConfig).keys() - {*DERIVED}


def preset(name: str, role: Role, **settings: Any) -> TrainConfig:
    """The settings of one role of a preset, some of them replaced.

    settings: fields of `TrainConfig` or of its model: `preset("mnist", "noisy", images=64)`. A
    budget replaces the preset's images. Raises ValueError for an unknown name and as
    `with_settings`, TypeError for an unknown field.
    """
    check_choices(preset=(name, PRESETS), role=(role, get_args(Role)))
    # A run that begins with given weights, whose settings have no rate, has smaller ones.
    rates = {"learning_rate", "kernel_rate", "rate_factor"}
    if settings.get("init") is not None and not rates & {*settings}:
        settings["rate_factor"] = FINE_TUNING
    return with_settings(PRESETS[name][role], settings)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The settings with some replaced, fields of `TrainConfig` or of its model.

    The classes of the model are open again: training takes those of its images. A budget replaces
    images, and they a budget; ValueError for both.
    """
    given = {name for name in ("images", "budget") if settings.get(name) is not None}
    if len(given) > 1:
        raise SettingError(("images", "budget"), "both say how long the run is: leave one out")
    if given:
        settings = {**settings, **dict.fromkeys({"images", "budget"} - given)}
    network = {name: value for name, value in settings.items() if name in _MODEL_FIELDS}
    own = {name: value for name, value in settings.items() if name not in _MODEL_FIELDS}
    model = own.pop("model", config.model)
    if isinstance(model, ModelConfig):  # else the settings say what it must be
        model = replace(model, classes=None, **network)
    return settled(replace(config, model=model, **own))
