"""Settings and logs of the wrong type: an error of one line that names file and field."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import dsmooth
from dsmooth import ModelConfig, PixelCNNpp
from dsmooth.config import TrainConfig
from dsmooth.files import read_tensors, structured, write_tensors
from dsmooth.presets import preset
from dsmooth.pretrained.runs import RunFolder
from tests.helpers.command_runs import save_run
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


SMALL = ModelConfig(n_filters=2, n_resnet=1, n_mix=1, dropout=0.0)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.full)])
def test_settings_of_the_wrong_type(tmp_path: Path, every: int) -> None:
    run, errors = RunFolder(tmp_path), list[tuple[str, str]]()
    run.write_config(preset("mnist-paper", "denoiser"), (28, 28))
    values = json.loads(run.config.read_text())
    for key, mutant in islice(mutants(values), None, None, every):
        run.config.write_text(json.dumps(mutant))
        try:
            config, size = run.read_config()
        except ValueError as error:
            errors.append((key, str(error)))
        else:
            assert key != "extra"
            settings = {k: v for k, v in mutant.items() if k not in ("dsmooth", "height_and_width")}
            assert structured(json.loads(json.dumps(settings)), TrainConfig, "") == config
            assert all(type(extent) is int for extent in size)
    assert len(errors) > 300 // every
    for key, error in errors:  # fields that contradict each other name the other one too
        names = "|".join([re.escape(key), "config.json of a run|role|atoms|batch_size"])
        assert re.fullmatch(rf"{re.escape(str(run.config))}.*({names}).*", error)


@pytest.mark.parametrize("name", ["n_filters", "n_resnet", "context_layers"])
def test_settings_bring_no_memory(tmp_path: Path, name: str) -> None:
    """Beside small weights, settings of a network of terabytes had it built."""
    before = time.process_time()
    run, model = RunFolder(tmp_path), PixelCNNpp(SMALL)
    dsmooth.save(model, run.path)
    text, state = read_tensors(run.weights)[1]["config"], model.state_dict()
    for change in (torch.Tensor.int, torch.atleast_3d):
        tensors = {key: change(value) for key, value in state.items()}
        write_tensors(run.weights, tensors, {"config": text})
        refuses(r"another shape: \d+ tensors differ", dsmooth.load, run.path)
    values = json.loads(text)
    values["networks"]["plain"][name] = 4096
    write_tensors(run.weights, state, {"config": json.dumps(values)})
    words = f"model of another shape|{name}: Expected `int` <= 256"
    refuses(rf"model\.safetensors .*({words})", dsmooth.load, run.path)
    assert time.process_time() - before < 4


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[]"])
def test_json_that_python_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refuses(r"config\.json cannot be read as a JSON object", RunFolder(tmp_path).read_config)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    path = save_run(tmp_path / "run", "noisy") / name
    path.unlink()
    os.mkfifo(path)
    refuses(rf"{name} must be a regular file", dsmooth.load, path.parent)


def test_lines_of_a_log(tmp_path: Path) -> None:
    """Lines that are not entries are left out; the others are kept."""
    run = RunFolder(tmp_path)
    entries = [
        {"event": "start", "images": 0, "seconds": 0.0, "total": 8, "loss": "bits/dim"},
        {"event": "step", "images": 8, "seconds": 1.0, "bits_per_dim": 2, "images_per_second": 8.0},
    ]
    whole = [json.dumps(entry).encode() for entry in entries]
    run.log.write_bytes(b"\n".join(whole))
    kept = run.read_log()
    assert len(kept) == 2
    for entry, line in zip(entries, whole, strict=True):
        mutated = [json.dumps(mutant).encode() for _, mutant in mutants(entry)]
        for damaged in (*mutated, line[:-3], b"\xff" + line, b"[1]", b"3", b"[" * 10**5):
            run.log.write_bytes(b"\n".join([*whole, damaged, *whole]) + b"\n")
            found = run.history()
            assert found[-2:] == kept
            assert all(type(entry.images) is int for entry in found)
            run.is_finished()
