"""Settings and logs of the wrong type: an error of one line that names file and field."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from dsmooth import ModelConfig, PixelCNNpp, SmoothedPair
from dsmooth.config import TrainConfig
from dsmooth.fields import flatten
from dsmooth.files import read_tensors, write_tensors
from dsmooth.machine import use_threads
from dsmooth.presets import preset
from dsmooth.runs import RunFolder
from dsmooth.sampling.request import Request
from dsmooth.smoothing import GaussianSmoothing
from tests.helpers.data_makers import refuses

# One of them has the right type for every field.
WRONG = (
    *(None, True, False, 0, -1, 3, 2**70, 0.5, 1e400, math.nan, "", "3", "é\n"),
    *([], [1], [1, 2], ["a", "b"], [[]], {}, {"a": 1}),
)


def mutants(values: Any) -> Iterator[tuple[str, Any]]:
    """Every document in which one value is another, is missing, or has a neighbour too many."""
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        for wrong in WRONG:
            yield str(key), {**values, key: wrong} if isinstance(values, dict) else wrong
        if isinstance(values, dict):
            yield str(key), {k: v for k, v in values.items() if k != key}
            if isinstance(values[key], dict):
                for name, inner in mutants(values[key]):
                    yield name, {**values, key: inner}
    yield "extra", {**values, "extra": 1}


@pytest.mark.parametrize(("name", "role"), [("mnist", "noisy"), ("mnist-paper", "denoiser")])
def test_settings_of_a_run(tmp_path: Path, name: str, role: Any) -> None:
    run = RunFolder(tmp_path)
    run.write_config(preset(name, role), (28, 28))
    values = json.loads(run.config.read_text())
    refused = 0
    for key, mutant in mutants(values):
        run.config.write_text(json.dumps(mutant))
        try:
            config, size = run.read_config()
        except ValueError as caught:
            error = str(caught)
        else:
            error = ""
        assert error or key != "extra"
        if error:
            refused += 1
            assert error.startswith(str(run.config))
            assert "\n" not in error
            # Fields that contradict each other name the other one too.
            named = (key, "is not of a training run", "role", "atoms", "batch_size")
            assert any(name in error for name in named), (key, error)
        else:
            assert isinstance(config, TrainConfig)
            own = {k: v for k, v in mutant.items() if k not in ("dsmooth", "height_and_width")}
            assert TrainConfig.from_dict(json.loads(json.dumps(own))) == config
            assert all(type(extent) is int for extent in size)
    assert refused > 300


def stated(values: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in flatten(values).items() if value is not None}


@pytest.mark.parametrize(
    "every", [12, pytest.param(1, marks=[pytest.mark.full, pytest.mark.budget(90)])]
)
def test_settings_of_a_pair(tmp_path: Path, every: int) -> None:
    """Settings in the weights' metadata are checked; config.json must be equal to them."""
    model = ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.0)
    denoiser = ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.0, conditioning="concat")
    pair = SmoothedPair(PixelCNNpp(model), PixelCNNpp(denoiser), GaussianSmoothing(0.5), (8, 8))
    pair.save_pretrained(tmp_path)
    path, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    values = json.loads(path.read_text())
    tensors, metadata = read_tensors(weights)
    refused = 0
    for _, mutant in islice(mutants(values), None, None, every):
        path.write_text(json.dumps(mutant))
        write_tensors(weights, tensors, metadata)
        for _ in range(2):
            error = None
            try:
                SmoothedPair.from_pretrained(tmp_path)
            except ValueError as caught:
                error = str(caught)
            refused += error is not None
            assert error is None or (str(tmp_path) in error and "\n" not in error)
            assert error or not path.exists() or stated(mutant) == stated(values)
            path.unlink(missing_ok=True)
            write_tensors(weights, tensors, {"config": json.dumps(mutant)})
    assert refused > 900 // every


@pytest.mark.budget(4)
@pytest.mark.parametrize("name", ["n_filters", "n_resnet"])
def test_settings_bring_no_memory(tmp_path: Path, name: str) -> None:
    """Beside small weights, settings of a network of terabytes had it built."""
    model = ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.0)
    run = RunFolder(tmp_path)
    run.write_config(replace(preset("mnist", "noisy"), model=model), (8, 8))
    write_tensors(run.weights, PixelCNNpp(model).state_dict(), {})
    found = run.load_model()[0]
    assert found.config == model
    for change in (torch.Tensor.int, torch.atleast_3d):
        write_tensors(run.weights, {k: change(v) for k, v in found.state_dict().items()}, {})
        refuses(r"another shape: \d+ tensors differ", run.load_model)
    values = json.loads(run.config.read_text())
    values["model"][name] = 4096
    run.config.write_text(json.dumps(values))
    refuses(r"model\.safetensors holds a model of another shape", run.load_model)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[]"])
def test_json_that_python_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refuses(r"config\.json (is not|must hold a) JSON", RunFolder(tmp_path).read_config)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path)
    run.write_config(preset("mnist", "noisy"), (8, 8))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    refuses(rf"{name} must be a regular file", run.load_model)


def test_lines_of_a_log(tmp_path: Path) -> None:
    """Lines that are no entries are left out; the others stand."""
    run = RunFolder(tmp_path)
    entries = [
        {"event": "start", "images": 0, "seconds": 0.0, "total": 8, "loss": "bits/dim"},
        {"event": "step", "images": 8, "seconds": 1.0, "bits_per_dim": 2, "images_per_second": 8.0},
        {"event": "evaluation", "images": 8, "seconds": 1.0, "bits_per_dim": 2.0},
        {"event": "end", "images": 8, "seconds": 1.0},
    ]
    whole = [json.dumps(entry).encode() for entry in entries]
    for entry, line in zip(entries, whole, strict=True):
        mutated = [json.dumps(mutant).encode() for _, mutant in mutants(entry)]
        for damaged in (*mutated, line[:-3], b"\xff" + line, b"[1]", b"3"):
            run.log.write_bytes(b"\n".join([*whole, damaged, *whole]) + b"\n")
            found = run.history()
            assert found[-4:] == entries
            assert all(type(each["images"]) is int for each in found)
            run.is_finished()


def test_arguments_of_the_wrong_type_are_named() -> None:
    for wrong in (None, "1", math.nan, 0.0, -1.0):
        refuses(r"^`temperature` must be positive and .* got ", Request, 4, temperature=wrong)
    message = "must be a whole number, got "
    for wrong in (None, 1.5, "1"):
        with pytest.raises(ValueError, match=f"^`seed` {message}"):
            GaussianSmoothing(0.5).sample(torch.zeros(1, 1, 4, 4), seed=wrong)
    for wrong in (None, 1.0, "1", True, math.nan):
        for name in ("count", "seed", "first_index"):
            refuses(f"^`{name}` {message}", Request, **{"count": 4, name: wrong})
        refuses("^`n_filters` must be (int|finite), got ", ModelConfig, n_filters=wrong)
        if wrong is not None:
            refuses(f"^`threads` {message}", use_threads, wrong)
    for name, wrong in (("dropout", "0.5"), ("atoms", 3), ("dropout", None)):
        refuses(f"^`{name}` .*{wrong}", ModelConfig, **{name: wrong})
