"""Settings of training runs that take a second."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.train import loop

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


def use_small_runs(patch: pytest.MonkeyPatch) -> None:
    """Training sees the middle 8 x 8 pixels of its images and draws no grids."""
    load = loop.load_data

    def load_small(config: TrainConfig) -> tuple[ImageDataset, ...]:
        middles = []
        for data in load(config):
            top, left = ((size - 8) // 2 for size in data.images.shape[2:])
            images = data.images[:, :, top : top + 8, left : left + 8]
            middles.append(replace(data, images=images.contiguous()))
        return tuple(middles)

    patch.setattr(loop, "load_data", load_small)
    patch.setattr(loop, "sample_grid", lambda state, data: torch.zeros(1, 1, 8, 8))
