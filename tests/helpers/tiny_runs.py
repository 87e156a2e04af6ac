"""Settings of training runs that take a second."""

from __future__ import annotations

from dsmooth.config import ModelConfig, TrainConfig

ROLES = ("noisy", "denoiser", "plain")


def tiny(
    role: str = "noisy",
    dropout: float = 0.3,
    n_classes: int | str = 0,
    noise_levels: tuple[float, ...] = (),
    **settings: object,
) -> TrainConfig:
    """40 images in batches of 8 through the smallest network; settings: of TrainConfig."""
    model = {
        "noisy": {},
        "denoiser": {"conditioning": "concat", "likelihood": "discretized", "context_layers": 1},
        "plain": {"likelihood": "discretized"},
    }[role]
    config = ModelConfig(
        n_filters=4,
        n_resnet=1,
        n_mix=2,
        dropout=dropout,
        n_classes=n_classes,
        noise_levels=noise_levels,
        **model,
    )
    defaults = {
        "images": 40,
        "batch_size": 8,
        "evaluations": 1,
        "evaluation_images": 10,
        "warmup_images": 16,
        "precision": "float32",
        "keep_gates": "off",
    }
    return TrainConfig(role=role, model=config, **{**defaults, **settings})
