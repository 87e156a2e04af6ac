"""What a training run says at its start and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import Role, TrainConfig
from ..data import ImageDataset
from ..nn import PixelCNNpp
from ..runs import RunFolder


def opening(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    model: PixelCNNpp,
    device: torch.device,
) -> Iterator[str]:
    """Lines that say what is trained on what, where, and in which precision."""
    height, width = train_set.image_size
    kind = "grey" if train_set.image_channels == 1 else "RGB"
    yield (
        f"{train_set.name}: {len(train_set):,} images to train on and {len(test_set):,} held out, "
        f"{kind}, {height} x {width}; from {train_set.source}"
    )
    count = torch.get_num_threads()
    threads = f" ({count} thread{'s' * (count > 1)})" if device.type == "cpu" else ""
    number = sum(parameter.numel() for parameter in model.parameters())
    if config.model.n_classes:
        yield f"{config.model.n_classes} classes, by the labels of the images"
    if config.model.noise_levels:
        yield f"noise of {', '.join(map(str, config.model.noise_levels))}, drawn for each image"
    yield f"{number:,} parameters; {device}{threads}, {config.precision}"


def closing(config: TrainConfig, run: RunFolder) -> Iterator[str]:
    """Lines that say what was written, and what can be done next."""
    pictures = len(run.grids())
    size = run.weights.stat().st_size / 1e6
    beside = f" and {pictures} picture{'s' * (pictures > 1)} beside it" if pictures else ""
    yield f"wrote {run.weights} ({size:.1f} MB){beside}"
    yield f"next: {next_step(config.role, run.path, bool(config.model.n_classes))}"


def next_step(role: Role, path: Path, classes: bool = False) -> str:
    """A command that goes on from a finished run, whose model may have classes."""
    label = " --label each" if classes else ""
    if role == "noisy":
        return f"train its denoiser, then dsmooth sample {path} DENOISER{label}"
    if role == "denoiser":
        return f"dsmooth sample NOISY {path}{label}, with the folder of its noisy model"
    return f"dsmooth sample {path}{label}, or dsmooth evaluate bpd {path}"
