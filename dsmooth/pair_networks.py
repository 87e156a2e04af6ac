"""The two networks of a pair: which fit together, and what they say of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar, get_args

from torch import Tensor, nn

from .config import Role, Score
from .nn import PixelCNNpp
from .nn.levels import at_level
from .nn.score import score_of
from .runs import Origin
from .smoothing import GaussianSmoothing, Smoothing

T = TypeVar("T")
P = TypeVar("P", bound="PairNetworks")


class PairNetworks(nn.Module):
    """p(x~) and p(x | x~) with the smoothing q(x~ | x) that they were trained for.

    Arguments and errors are those of `SmoothedPair`.
    """

    def __init__(
        self,
        noisy: PixelCNNpp,
        denoiser: PixelCNNpp,
        smoothing: Smoothing,
        image_size: Sequence[int],
    ) -> None:
        super().__init__()
        if noisy.config.conditioning != "none" or noisy.config.likelihood == "discretized":
            raise ValueError(
                'the noisy model must have conditioning="none" and likelihood="continuous" or '
                f'"gaussian", got "{noisy.config.conditioning}" and "{noisy.config.likelihood}"'
            )
        contained = noisy.config.smoothing_scale
        if noisy.config.likelihood == "gaussian" and (
            smoothing.kind != "gaussian" or smoothing.scale < contained
        ):
            raise ValueError(
                'the noisy model\'s likelihood "gaussian" contains gaussian noise of scale '
                f"{contained}, got {smoothing.kind} smoothing of scale {smoothing.scale}"
            )
        if denoiser.config.conditioning == "none":
            raise ValueError('the denoiser must have conditioning="stack" or "concat", got "none"')
        if noisy.config.image_channels != denoiser.config.image_channels:
            raise ValueError(
                f"the models must have the same image_channels, got "
                f"{noisy.config.image_channels} and {denoiser.config.image_channels}"
            )
        classes = {model.config.condition_size for model in (noisy, denoiser)} - {0}
        if len(classes) > 1:
            raise ValueError(
                "the models must have the same n_classes, or one of them none, got "
                f"{noisy.config.n_classes} and {denoiser.config.n_classes}"
            )
        levels = noisy.config.noise_levels
        if levels != denoiser.config.noise_levels:
            raise ValueError(
                "the models must have the same noise_levels, got "
                f"{levels} and {denoiser.config.noise_levels}"
            )
        if levels and (smoothing.kind, smoothing.scale) != ("gaussian", levels[-1]):
            raise ValueError(
                f"models with noise_levels {levels} need gaussian smoothing of scale {levels[-1]}, "
                f"got {smoothing.kind} of scale {smoothing.scale}"
            )
        height, width = image_size
        if height < 4 or width < 4 or height % 4 or width % 4:
            raise ValueError(f"image_size must be multiples of 4, got {tuple(image_size)}")
        self.noisy = noisy
        self.denoiser = denoiser
        self.smoothing = smoothing
        self.image_size = (int(height), int(width))
        self.origin: Mapping[Role, Origin] = {}
        """Where the weights come from, as far as it is known; shown by the model card."""

    def __repr__(self) -> str:
        """Both networks, the smoothing and the images in a few lines; not every layer."""
        height, width = self.image_size
        shape = f"{self.noisy.config.image_channels} x {height} x {width}"
        lines = [
            f"noisy: {describe_network(self.noisy)}",
            f"denoiser: {describe_network(self.denoiser)}",
            f"smoothing: {self.smoothing.kind} of scale {self.smoothing.scale}",
            f"images: {shape}, on {self.noisy.head.bias.device}",
        ]
        return "\n  ".join(["SmoothedPair(", *lines]) + "\n)"

    @property
    def n_classes(self) -> int:
        """Classes of the models that have some, 0 for a pair without."""
        return max(model.config.condition_size for model in (self.noisy, self.denoiser))

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """The scales of noise that the models know, rising; often that of the smoothing alone."""
        return self.noisy.config.noise_levels or (self.smoothing.scale,)

    def at(self: P, scale: float) -> P:
        """The pair for noise of one of its `noise_levels`; weights are shared.

        It has that level alone; a pair of one level is itself. Raises ValueError for another scale.
        """
        if scale not in self.noise_levels:
            raise ValueError(f"the noise levels of the pair are {self.noise_levels}, not {scale}")
        if not self.noisy.config.noise_levels:
            return self
        level = self.noise_levels.index(scale)
        noisy, denoiser = (at_level(model, level) for model in (self.noisy, self.denoiser))
        return type(self)(noisy, denoiser, GaussianSmoothing(scale), self.image_size).eval()

    def ladder(self, levels: Sequence[float] | None) -> tuple[float, ...]:
        """The scales of noise of a ladder, falling; by default the highest of all alone.

        Raises ValueError for levels that do not fall or that the pair does not have.
        """
        if levels is None:
            return self.noise_levels[-1:]
        falling = all(high > low for high, low in pairwise(levels))
        if not levels or not falling or not set(levels) <= set(self.noise_levels):
            raise ValueError(
                f"levels must fall and be among {', '.join(map(str, self.noise_levels))}, got "
                f"{', '.join(map(str, levels)) or 'none'}"
            )
        return tuple(levels)

    def single_step(
        self, x_tilde: Tensor, *, score: Score = "full", label: Tensor | None = None
    ) -> Tensor:
        """The posterior mean E[x | x~] = x~ + scale**2 * grad log p(x~) (Tweedie's formula).

        score: "full" differentiates through the whole network, which makes the formula exact for
        a perfect model; "conditional" holds the network's parameters fixed and differentiates each
        pixel's own conditional only, as the paper's released code does. label: as of `elbo`.
        Raises ValueError for smoothing that is not Gaussian and for an unknown score.
        """
        if not isinstance(self.smoothing, GaussianSmoothing):
            raise ValueError(
                f"single-step denoising needs gaussian smoothing, got {self.smoothing.kind}"
            )
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        noisy = self.at(self.smoothing.scale).noisy
        gradient = score_of(noisy, x_tilde, score, self.label_for(noisy, label))
        return x_tilde + self.smoothing.scale**2 * gradient

    def noisy_log_prob(self, x_tilde: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x~) of noise of one level: (B,), nats."""
        return self.noisy.log_prob(x_tilde, label=self.label_for(self.noisy, label))

    def denoiser_log_prob(self, x: Tensor, x_tilde: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x | x~) of noise of one level: (B,), nats."""
        return self.denoiser.log_prob(x, x_tilde, self.label_for(self.denoiser, label))

    def label_for(self, model: PixelCNNpp, label: T | None) -> T | None:
        """`label` as one of the two models takes it: None for a model without classes.

        Raises ValueError for a label that neither model takes.
        """
        if label is not None and not self.n_classes:
            raise ValueError("label was given, but neither model of the pair has classes")
        return label if model.config.condition_size else None


def describe_network(model: PixelCNNpp) -> str:
    """The settings of a network that matter most, in one line."""
    config = model.config
    atoms = f" with {len(config.atoms)} atoms" if config.atoms else ""
    classes = f", {config.n_classes} classes" if config.n_classes else ""
    number = sum(p.numel() for p in model.parameters())
    levels = f", noise {', '.join(map(str, config.noise_levels))}" if config.noise_levels else ""
    return (
        f"{number:,} parameters, F {config.n_filters}, R {config.n_resnet}, K {config.n_mix}, "
        f"{config.conditioning}, {config.likelihood}{atoms}{classes}{levels}"
    )
