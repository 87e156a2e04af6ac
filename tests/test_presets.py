"""Every preset on every kind of data: it builds, trains a step, and samples."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsmooth
from dsmooth.cli import main
from dsmooth.config import ModelConfig, TrainConfig
from dsmooth.data import ImageDataset
from dsmooth.presets import DESCRIPTIONS, PRESETS, preset
from dsmooth.sampling import sample_images
from dsmooth.train.held_out import evaluate
from dsmooth.train.loop import load_data
from dsmooth.train.step import TrainState
from tests.helpers.data_makers import cifar_binary, random_bytes, write_images, write_mnist

ROLES = ("noisy", "denoiser", "plain")
CPU = torch.device("cpu")


def shrink(config: TrainConfig) -> TrainConfig:
    """The preset with a small network; all else is the preset's."""
    model = replace(config.model, n_filters=4, n_resnet=1, n_mix=2, context_layers=1)
    return replace(config, model=model, images=64, batch_size=8, precision="float32")


def dataset(channels: int, size: int) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, channels, size, size), generator=generator).byte()
    return ImageDataset(images, None, "made", "train", "made for a test")


@pytest.mark.quick
def test_every_preset_is_described() -> None:
    assert PRESETS.keys() == DESCRIPTIONS.keys()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_a_step_and_samples(name: str, role: str) -> None:
    config = shrink(preset(name, role))
    channels = config.model.image_channels
    data = dataset(channels, 8)
    state = TrainState(config, data, CPU)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    state.step()
    (reading,) = state.read()
    assert math.isfinite(reading.loss)
    assert reading.gradient_norm > 0
    # The paper's learning rate starts at its full value, ours is warmed up: both move.
    moved = [key for key, value in state.model.state_dict().items() if (value != before[key]).any()]
    assert len(moved) > 0.9 * len(before)
    assert (state.ema is None) == (config.ema == 0)
    assert math.isfinite(evaluate(state, data))
    with torch.no_grad():  # one step does not make a network that samples without diverging
        state.averaged.head.weight_g.mul_(0.1)
    context = data.batch(torch.arange(2)) if role == "denoiser" else None
    x = sample_images(state.averaged, 2, height=8, width=8, context=context)
    assert x.shape == (2, channels, 8, 8)
    assert x.isfinite().all()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_at_full_size(name: str) -> None:
    for role in ROLES:
        with torch.device("meta"):
            model = dsmooth.PixelCNNpp(preset(name, role).model)
        assert sum(p.numel() for p in model.parameters()) > 100_000


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["embedded", "mnist", "cifar10", "folder"])
def test_each_kind_of_data_trains_a_step(tmp_path: Path, kind: str) -> None:
    model = ModelConfig(n_filters=4, n_resnet=1, n_mix=2)
    config = TrainConfig(model=model, images=8, batch_size=4, evaluation_images=2)
    if kind == "mnist":
        for split in ("train", "test"):
            write_mnist(tmp_path, 5, split)
        config = replace(config, data="mnist", data_dir=str(tmp_path))
    elif kind == "cifar10":
        for name in ("data_batch_1.bin", "test_batch.bin"):
            content = cifar_binary(random_bytes((5, 3072)), random_bytes((5,)) % 10)
            (tmp_path / name).write_bytes(content)
        config = replace(config, data="cifar10", data_dir=str(tmp_path))
    elif kind == "folder":
        write_images(tmp_path, {f"{i}.png": random_bytes((8, 12, 3), seed=i) for i in range(12)})
        config = replace(config, data="folder", data_dir=str(tmp_path))
    if kind in ("cifar10", "folder"):
        config = replace(config, model=replace(model, image_channels=3))
    train_set, test_set = load_data(config)
    state = TrainState(config, train_set, CPU)
    state.step()
    assert math.isfinite(state.read()[0].loss)
    assert math.isfinite(evaluate(state, test_set))


def test_the_same_commands_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = random_bytes((32, 8, 8, 3))
    write_images(tmp_path / "images", {f"{i}.png": picture for i, picture in enumerate(pictures)})
    tiny = shlex.split(
        "--n-filters 4 --n-resnet 1 --n-mix 2 --context-layers 1 --images 320 --batch-size 16"
        " --ema 0 --learning-rate 2e-2 --warmup-images 0 --evaluations 1 --evaluation-images 4"
    )
    tiny += ["--data", "folder", "--data-dir", str(tmp_path / "images")]
    files: list[list[bytes]] = []
    for name in ("first", "second"):
        folder = tmp_path / name
        runs = []
        for role in ("noisy", "denoiser"):
            runs.append(str(folder / role))
            with pytest.raises(SystemExit, match=r"^0$"):
                main(["train", role, "--out", runs[-1], *tiny])
        outputs = [str(folder / "x.png"), str(folder / "x.npz")]
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["sample", *runs, "-n", "4", "--out", *outputs])
        kept = [*folder.glob("*/model.safetensors"), *map(Path, outputs)]
        files.append([path.read_bytes() for path in sorted(kept)])
    assert files[0] == files[1]
    assert len(files[0]) == 4
