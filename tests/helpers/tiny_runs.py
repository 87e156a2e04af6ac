"""Settings of training runs that take a second."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.runs import RunFolder
from dsmooth.training import beginning, loop, train
from dsmooth.training.step import TrainState

ROLES = ("noisy", "denoiser", "plain")


def tiny(
    role: str = "noisy", dropout: float = 0.3, n_classes: int | str = 0, **settings: object
) -> TrainConfig:
    """40 images in batches of 8 through the smallest network; settings: of TrainConfig."""
    model = {
        "noisy": {},
        "denoiser": {"conditioning": "concat", "likelihood": "discretized", "context_layers": 1},
        "plain": {"likelihood": "discretized"},
    }[role]
    config = ModelConfig(
        n_filters=4, n_resnet=1, n_mix=2, dropout=dropout, n_classes=n_classes, **model
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
        "keep_gates": "off",
    }
    return TrainConfig(role=role, model=config, **{**defaults, **settings})


def train_until(
    images: int, config: TrainConfig, run: Path, patch: pytest.MonkeyPatch, **options: bool
) -> None:
    """Train, but a signal comes after so many images."""
    step = TrainState.step

    def step_then_signal(state: TrainState) -> None:
        step(state)
        if state.images_seen == images:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with patch.context() as inner:
        inner.setattr(TrainState, "step", step_then_signal)
        stopped = train(config, run, **options)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (stopped.images_seen, stopped.interrupted) == (images, signal.SIGTERM)


def assert_same_end(first: Path, second: Path) -> None:
    """Two runs have the same checkpoint and weights, bit for bit."""
    for name in ("checkpoint", "weights"):
        mine, theirs = (load_file(getattr(RunFolder(run), name)) for run in (first, second))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


def use_small_runs(patch: pytest.MonkeyPatch) -> None:
    """Training sees the middle 8 x 8 pixels of its images and draws no grids."""
    load = beginning.load_data

    def load_small(config: TrainConfig, **options: bool) -> tuple[ImageDataset, ...]:
        middles = []
        for data in load(config, **options):
            top, left = ((size - 8) // 2 for size in data.images.shape[2:])
            images = data.images[:, :, top : top + 8, left : left + 8]
            middles.append(replace(data, images=images.contiguous()))
        return tuple(middles)

    for module in (beginning, loop):
        patch.setattr(module, "load_data", load_small)
    patch.setattr(loop, "sample_grid", lambda state, data: torch.zeros(1, 1, 8, 8))
