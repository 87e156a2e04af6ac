"""The command called in this process, and run folders for it to read."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth.cli import main
from dsmooth.config import ProbeSettings, TrainConfig
from dsmooth.experiments import ReproduceSettings
from dsmooth.presets import preset
from dsmooth.pretrained.folders import HERE
from dsmooth.pretrained.runs import RunFolder
from dsmooth.results import BitsResult, FrechetResult
from dsmooth.work import read_result
from tests.helpers.networks import numbered

# Options after those of a documented command, which they override: a tiny network, twelve quick
# steps, after which samples do not diverge, and few images.
SMALLER = {
    "train": "--n-filters 4 --n-resnet 1 --set n_mix=2 --set context_layers=1 --set dropout=0"
    " --images 96 --batch-size 8 --set ema=0 --learning-rate 2e-2 --set warmup_images=0"
    " --set evaluations=1 --set evaluation_images=4",
    "sample": "-n 4",
    "cluster": "",
    "complete": "--draws 2",
    "bpd": "--limit 4 --n-noise 2",
    "fid": "-n 4",
    "probe": "--train-images 4 --test-images 4 --epochs 1",
    "reproduce": "-n 4",
    "doctor": "",
}


SMALL = {"n_filters": 4, "n_resnet": 1, "n_mix": 2, "context_layers": 1}


def smaller(command: str) -> list[str]:
    """The arguments of a documented `dsmooth ...`, for a tiny network and few images."""
    words = shlex.split(re.sub(r"--budget \S+", "", command.partition("dsmooth ")[2]))
    verb = next(word for word in words if word in SMALLER)
    return [*words, *SMALLER[verb].split()]


def measure_few(patch: pytest.MonkeyPatch) -> None:
    """`dsmooth reproduce` measures few images, and trains probes for one epoch."""
    few = ProbeSettings(train_images=12, test_images=6, epochs=1)
    patch.setattr("dsmooth.commands.reproduce.PROBES", few)
    patch.setattr(
        "dsmooth.commands.reproduce.ReproduceSettings", partial(ReproduceSettings, scored_images=12)
    )


def run(*args: str) -> int:
    return main(args)


def complains(capsys: pytest.CaptureFixture[str], message: str, *words: str) -> None:
    """The command fails with a line or two that have the message."""
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dsmooth: error: ")
    assert len(error.splitlines()) <= 3


def settings_of(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    """The settings that `dsmooth train WORDS` prints."""
    assert run("train", *words.split(), "--print-config") == 0
    return json.loads(capsys.readouterr().out)


RESULTS = {"bpd": BitsResult, "fid": FrechetResult}


def measured(measure: str, *words: str) -> Any:
    """The result of `dsmooth evaluate`, which it writes into the current folder."""
    assert run("evaluate", measure, *words, "--out", "numbers.json") == 0
    return read_result(Path("numbers.json"), RESULTS[measure])


def save_run(
    folder: Path, role: str, *, size: int = 8, n_classes: int = 0, **settings: object
) -> Path:
    """A run folder as training leaves it, of a small untrained network that does not diverge."""
    config = preset("mnist-quick", role, images=1, classes=n_classes > 0, **SMALL, **settings)
    classes = numbered(n_classes, config.label_dropout)
    config = replace(config, model=replace(config.model, classes=classes))
    return write_untrained(folder, config, (size, size))


def write_untrained(folder: Path, config: TrainConfig, size: tuple[int, int]) -> Path:
    torch.manual_seed(0)
    model = dsmooth.PixelCNNpp(config.model)
    with torch.no_grad():
        model.head.weight_g.mul_(0.1)
    RunFolder(folder).write_model(model, config, size)
    return folder


def write_small_packaged(folder: Path) -> Path:
    """The packaged models with small untrained networks, which draw and score in less time."""
    for path in HERE.glob("*/*/config.json"):
        config, size = RunFolder(path.parent).read_config()
        target = folder / path.parent.relative_to(HERE)
        write_untrained(target, replace(config, model=replace(config.model, **SMALL)), size)
        shutil.copy(RunFolder(path.parent).log, target)
        for card in path.parents[1].glob("card.json"):
            shutil.copy(card, target.parent)
    return folder
