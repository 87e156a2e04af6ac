"""Settings of training runs that take a second."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import ImageDataset, load_splits
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import Evaluation, plan, train
from tests.helpers.networks import numbered

ROLES = ("noisy", "denoiser", "plain")


def tiny(
    role: str = "noisy", dropout: float = 0.3, n_classes: int = 0, **settings: object
) -> TrainConfig:
    """40 images in batches of 8 through the smallest network; settings: of TrainConfig."""
    model = {
        "noisy": {},
        "denoiser": {"conditioning": "concat", "likelihood": "discretized", "context_layers": 1},
        "plain": {"likelihood": "discretized"},
    }[role]
    config = ModelConfig(
        n_filters=4, n_resnet=1, n_mix=2, dropout=dropout, classes=numbered(n_classes), **model
    )
    defaults = {
        "images": 40,
        "batch_size": 8,
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "evaluations": 1,
        "evaluation_images": 10,
        "warmup_images": 16,
        "precision": "float32",
    }
    return TrainConfig(role=role, model=config, **{**defaults, **settings})


def train_until(images: int, config: TrainConfig, folder: Path) -> None:
    """Train, but a signal comes before the step that ends after so many images."""

    def signal_before(evaluation: Evaluation) -> None:
        if evaluation.images_seen == images - config.batch_size:
            signal.raise_signal(signal.SIGTERM)

    every_step = replace(config, evaluations=config.images)
    stopped = train(every_step, folder, on_evaluation=signal_before)
    assert (stopped.images_seen, stopped.interrupted) == (images, signal.SIGTERM)


def assert_same_end(first: Path, second: Path) -> None:
    """Two runs have the same checkpoint and weights, bit for bit."""
    for name in ("checkpoint", "weights"):
        a, b = (load_file(getattr(RunFolder(run), name)) for run in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def use_small_runs(patch: pytest.MonkeyPatch) -> None:
    """Training sees the middle 8 x 8 pixels of its images."""

    def middle(data: ImageDataset) -> ImageDataset:
        top, left = ((size - 8) // 2 for size in data.image_size)
        images = data.images[:, :, top : top + 8, left : left + 8]
        return replace(data, images=images.contiguous())

    def load(*args: object, **options: object) -> list[ImageDataset]:
        return [middle(data) for data in load_splits(*args, **options)]

    patch.setattr(plan, "load_splits", load)
