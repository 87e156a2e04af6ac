"""Networks of a pair: what must agree between them, and each of them in a line."""

from __future__ import annotations

from .nn import PixelCNNpp
from .smoothing import Smoothing


def check_fit(noisy: PixelCNNpp, denoiser: PixelCNNpp, smoothing: Smoothing) -> None:
    """Raise ValueError for models that do not fit together, TypeError for a number as smoothing."""
    if not isinstance(smoothing, Smoothing):
        raise TypeError(
            f"smoothing must be a Smoothing, as GaussianSmoothing(0.5), got {smoothing}"
        )
    ours, theirs = noisy.config, denoiser.config
    if ours.conditioning != "none" or ours.likelihood == "discretized":
        raise ValueError(
            'the noisy model must have conditioning="none" and likelihood="continuous" or '
            f'"gaussian", got "{ours.conditioning}" and "{ours.likelihood}"'
        )
    if theirs.conditioning == "none":
        raise ValueError('the denoiser must have conditioning="stack" or "concat", got "none"')
    for name, one, other in (
        ("image_channels", ours.image_channels, theirs.image_channels),
        ("n_classes, or one of them none", ours.n_classes, theirs.n_classes),
        ("noise_levels", ours.noise_levels, theirs.noise_levels),
    ):
        if one != other and 0 not in (one, other):
            raise ValueError(f"the models must have the same {name}, got {one} and {other}")
    given, levels = f"{smoothing.kind} smoothing of scale {smoothing.scale}", ours.noise_levels
    contains = ours.smoothing_scale if ours.likelihood == "gaussian" else 0
    if contains and (smoothing.kind != "gaussian" or smoothing.scale < contains):
        raise ValueError(
            'the noisy model\'s likelihood "gaussian" contains gaussian noise of scale '
            f"{contains}, got {given}"
        )
    if levels and (smoothing.kind, smoothing.scale) != ("gaussian", levels[-1]):
        raise ValueError(
            f"models with noise_levels {levels} need gaussian smoothing of scale {levels[-1]}, "
            f"got {given}"
        )


def describe(model: PixelCNNpp) -> str:
    """The settings of a network that matter most, in one line."""
    config = model.config
    atoms = f" with {len(config.atom_bytes)} atoms" if config.atoms else ""
    octaves = f", {config.fourier_features} octaves" if config.fourier_features else ""
    hidden = f", M {config.head_filters}" if config.head_filters else ""
    classes = f", {config.n_classes} classes" if config.n_classes else ""
    number = sum(p.numel() for p in model.parameters())
    levels = f", noise {', '.join(map(str, config.noise_levels))}" if config.noise_levels else ""
    return (
        f"{number:,} parameters, F {config.n_filters}, R {config.n_resnet}, K {config.n_mix}, "
        f"{config.conditioning}, {config.likelihood}{atoms}{octaves}{hidden}{classes}{levels}"
    )
